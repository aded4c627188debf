"""One mesh for all tests that need nothing special; each makes shields of its own in it."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.safety.mesh import SafetyMesh, safety_mesh


@pytest.fixture(scope="session")
async def running() -> AsyncIterator[SafetyMesh]:
    """Services with the word guard's provider and no shield."""
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:  # not pytest's: paths of sockets must be short
        async with safety_mesh(Path(folder)) as mesh:
            yield mesh


@pytest.fixture
def mesh(running: SafetyMesh) -> SafetyMesh:
    """The same, with a guard that has seen nothing yet."""
    running.seen.subjects.clear()
    running.open.clear()
    return running
