"""What Alembic runs: our tables over the connection that we hand it."""

from services.gateway.batches.migrations import VERSION_TABLE
from services.gateway.batches.tables import metadata
from services.runtime.migrations import run

run(metadata, version_table=VERSION_TABLE)
