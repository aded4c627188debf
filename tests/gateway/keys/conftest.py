"""Keys over either database, and a Redis."""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.gateway.keys.node import KeysMesh, keys_mesh
from tests.memory.postgres import postgres_databases, postgres_server, postgres_url  # noqa: F401 (fixtures)


@pytest.fixture(params=["sqlite", "postgresql"])
async def mesh(request: pytest.FixtureRequest) -> AsyncIterator[KeysMesh]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    async with keys_mesh(url) as running:
        yield running


@pytest.fixture
async def small(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KeysMesh]:
    """Over SQLite, for what does not depend on the database."""
    async with keys_mesh() as running:
        yield running


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of our own behind a unix socket; skips where there is none, unless REQUIRE_REDIS=1."""
    program = shutil.which("redis-server")
    if program is None:
        if os.environ.get("REQUIRE_REDIS") == "1":
            raise FileNotFoundError("redis-server is not installed")
        pytest.skip("needs Redis: apt-get install redis-server")
    socket = tmp_path_factory.mktemp("redis") / "r.sock"
    arguments = [program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(socket.parent)]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as server:
        try:
            yield f"unix://{socket}"
        finally:
            server.terminate()
