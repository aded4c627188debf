"""What Alembic runs: our tables over the connection that we hand it."""

from services.runtime.migrations import run
from services.tools.migrations import VERSION_TABLE
from services.tools.tables import metadata

run(metadata, version_table=VERSION_TABLE)
