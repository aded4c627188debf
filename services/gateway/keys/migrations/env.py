"""What Alembic runs: our tables over the connection that we hand it."""

from services.gateway.keys.migrations import VERSION_TABLE
from services.gateway.keys.tables import metadata
from services.runtime.migrations import run

run(metadata, version_table=VERSION_TABLE)
