"""What Alembic runs: our tables over the connection that we hand it."""

from services.runtime.migrations import run
from services.telemetry.migrations import VERSION_TABLE
from services.telemetry.tables import metadata

run(metadata, version_table=VERSION_TABLE)
