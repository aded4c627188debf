"""What Alembic runs: our tables over the connection that we hand it."""

from typing import Any

from alembic import context

from services.gateway.batches.migrations import VERSION_TABLE
from services.gateway.batches.tables import metadata


def run() -> None:
    """Migrate over `config.attributes["connection"]`."""
    connection: Any = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        include_name=lambda name, kind, _parents: kind != "table" or name in metadata.tables,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


run()
