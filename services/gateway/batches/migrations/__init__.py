"""Alembic migrations of the batches' tables; the same run on SQLite and PostgreSQL."""

from pathlib import Path

import sqlalchemy as sa

from services.runtime import migrations

VERSION_TABLE = "batch_version"
"""A name of its own, for the database may be shared with other services."""
_LOCK = 0x626174636865  # of our migrations among PostgreSQL's advisory locks


def upgrade(connection: sa.Connection) -> None:
    """Bring the tables up to date inside the connection's transaction; other processes wait.

    Raises:
        FailedPreconditionError: If a newer version wrote them.
    """
    migrations.upgrade(connection, folder=Path(__file__).parent, lock=_LOCK, whose="the batches' tables were")
