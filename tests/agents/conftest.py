"""One mesh for the tests that need nothing special; each makes its own agents."""

from collections.abc import AsyncIterator

import pytest

from tests.agents.mesh import Mesh, running_mesh


@pytest.fixture(scope="session")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path_factory.mktemp("mesh")) as running:
        yield running
        runner = running.node._runner
        assert not runner._running
        assert not runner._changes
        assert not runner._changing
