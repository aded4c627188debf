"""What Alembic runs: our tables over the connection that we hand it."""

from typing import Any

from alembic import context

from services.memory.migrations import INDEX_PREFIX
from services.memory.tables import metadata


def _ours(_object: object, name: str | None, kind: str, _reflected: bool, _other: object) -> bool:  # noqa: FBT001 (Alembic calls it)
    return not (kind == "table" and (name or "").startswith(INDEX_PREFIX))


def run() -> None:
    """Migrate over `config.attributes["connection"]`."""
    connection: Any = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_object=_ours,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


run()
