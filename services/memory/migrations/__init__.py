"""Alembic migrations of the memory's tables; the same run on SQLite and PostgreSQL."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError

from stack_client.errors import FailedPreconditionError

INDEX_PREFIX = "index_"
"""Tables that indexes make for themselves are no matter of migrations."""
_LOCK = 0x6C6C616D61  # of our migrations among PostgreSQL's advisory locks


def config_for(connection: sa.Connection) -> Config:
    """Alembic's configuration for an open connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def upgrade(connection: sa.Connection) -> None:
    """Bring the tables up to date inside the connection's transaction; other processes wait.

    Raises:
        FailedPreconditionError: If a newer version wrote them.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    try:
        command.upgrade(config_for(connection), "head")
    except CommandError as error:
        message = f"the memory's database was written by a newer version ({error}); go on with that version"
        raise FailedPreconditionError(message) from error
