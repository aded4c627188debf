"""Running Alembic's migrations of a service over an open connection; the same on SQLite and PostgreSQL."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command, context
from alembic.config import Config
from alembic.util.exc import CommandError

from stack_client.errors import FailedPreconditionError


def upgrade(connection: sa.Connection, *, folder: Path, lock: int, whose: str) -> None:
    """Bring tables up to date inside the connection's transaction; other processes wait.

    Args:
        connection: With a transaction.
        folder: Of the migrations, with `env.py` and `versions/`.
        lock: Number of these migrations among PostgreSQL's advisory locks.
        whose: Of what the tables are, for the error: `the tools' database was`.

    Raises:
        FailedPreconditionError: If a newer version wrote them.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        message = f"{whose} written by a newer version ({error}); go on with that version"
        raise FailedPreconditionError(message) from error


def run(metadata: sa.MetaData, *, version_table: str) -> None:
    """Migrate over the connection that `upgrade` handed to Alembic; called by a service's `env.py`.

    Args:
        metadata: The service's tables; others in the database are left alone.
        version_table: Where the version stands; a name of its own, for services may share a database.
    """
    connection: Any = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=version_table,
        include_name=lambda name, kind, _parents: kind != "table" or name in metadata.tables,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()
