"""One inference node with a scripted model for all tests, and one agents node for those that need nothing special."""

from collections.abc import AsyncIterator

import pytest

from tests.agents.mesh import Mesh, running_mesh
from tests.memory.postgres import postgres_databases, postgres_server  # noqa: F401 (fixtures)


@pytest.fixture(scope="session")
async def inference(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Its address; an engine process comes with it, which takes seconds to stop."""
    async with running_mesh(tmp_path_factory.mktemp("inference"), "inference") as running:
        yield running.config.addresses["inference"]


@pytest.fixture(scope="session")
async def mesh(tmp_path_factory: pytest.TempPathFactory, inference: str) -> AsyncIterator[Mesh]:
    """Each test makes its own agents in it."""
    async with running_mesh(tmp_path_factory.mktemp("mesh"), inference=inference) as running:
        yield running
        runner = running.node._runner
        assert not runner._running
        assert not runner._notices._changes
        assert not runner._changing
        responses = running.node._responses
        assert not responses._following
        assert not responses._readers
        assert not responses._doomed
