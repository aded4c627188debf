"""One tools service for all tests that need nothing special."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.memory.postgres import postgres_databases, postgres_server, postgres_url  # noqa: F401 (fixtures)
from tests.tools.mesh import SHOP, ToolsMesh, tools_mesh

FUNCTIONS = ("tests.tools.workshop:add", "tests.tools.workshop:fail")
PYTHON: dict[str, Any] = {
    "toolgroups": [{"identifier": "python::test", "provider_id": "python"}],
    "providers": {"python": {"groups": {"python::test": {"functions": FUNCTIONS}}}},
}


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short path, as those of unix sockets must be."""
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:
        yield Path(folder)


@pytest.fixture
async def mesh(home: Path) -> AsyncIterator[ToolsMesh]:
    """The service with a registered group of the workshop."""
    async with tools_mesh(home, **PYTHON) as running:
        await running.register(SHOP)
        yield running
