"""Who holds what over a lease in a shared database: names of processes, and one clock for all of them."""

import os
import socket
import uuid

import psutil
import sqlalchemy as sa

NOW = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
}
"""The database's time in seconds since 1970, by dialect."""


def new_owner() -> str:
    """A name for this process that no other has, and by which others on this machine see that it has ended."""
    process = psutil.Process()
    return f"{socket.gethostname()}/{process.pid}/{process.create_time():.2f}/{uuid.uuid4().hex[:8]}"


def has_ended(owner: str) -> bool:
    """Whether an owner is a process of this machine that is gone; False also where that cannot be known."""
    host, _, rest = owner.partition("/")
    pid, _, rest = rest.partition("/")
    started = rest.partition("/")[0]
    if host != socket.gethostname() or not pid.isdigit():
        return False
    if int(pid) == os.getpid():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" != started
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def database_now(connection: sa.Connection) -> "sa.ColumnElement[float]":
    """The database's time in seconds since 1970: the clocks of several machines need not agree."""
    return sa.literal_column(NOW[connection.dialect.name], sa.Float)
