"""Alembic migrations of the batches' tables; the same run on SQLite and PostgreSQL."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError

from stack_client.errors import FailedPreconditionError

VERSION_TABLE = "batch_version"
"""A name of its own, for the database is shared with the rest of the gateway."""
_LOCK = 0x626174636865  # of our migrations among PostgreSQL's advisory locks


def upgrade(connection: sa.Connection) -> None:
    """Bring the tables up to date inside the connection's transaction; other processes wait.

    Raises:
        FailedPreconditionError: If a newer version wrote them.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        message = f"the batches' tables were written by a newer version ({error}); go on with that version"
        raise FailedPreconditionError(message) from error
