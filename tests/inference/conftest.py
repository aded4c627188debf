"""Real inference nodes behind unix sockets: scripted models per test, the real small models once per run."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.inference.node import InferenceNode, build
from services.inference.providers.torch_engine import TorchProvider
from services.runtime.config import RuntimeConfig, StackConfig
from services.runtime.process import hosting
from services.runtime.server import Hosted
from services.runtime.service import ServiceContext
from stack_client import StackClient

SCRIPT = [
    {"match": "^weather", "tools": True, "reply": "Looking.", "tool_calls": [
        {"tool_name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}]},
    {"match": "^both", "tools": True, "tool_calls": [{"tool_name": "get_weather"}, {"tool_name": "get_weather"}]},
    {"role": "tool", "reply": "The tool says: {0}"},
    {"match": "^slow (.*)$", "reply": "{1}", "token_seconds": 0.002},
    {"match": "^as JSON", "reply": '{"city": "Oslo", "degrees": 18}'},
    {"match": "^hang", "reply": "before", "hang": True},
    {"match": "^break", "reply": "half an", "error": "the script breaks here"},
]  # fmt: skip
SCRIPTED = {"model_id": "scripted", "provider_id": "scripted", "metadata": {"script": SCRIPT}}
SCRIPTED_EMBEDDING = {"model_id": "scripted-embed", "provider_id": "scripted", "model_type": "embedding"}
SMOL = {"model_id": "smollm2-135m", "provider_model_id": "packaged:smollm2-135m"}
MINILM = {
    "model_id": "all-minilm-l6-v2", "provider_model_id": "packaged:all-minilm-l6-v2", "model_type": "embedding",
}  # fmt: skip


@dataclass
class Node:
    """A running node and a client of it."""

    service: InferenceNode
    client: StackClient
    hosted: Hosted
    address: str

    @property
    def torch(self) -> TorchProvider:
        """Its torch provider."""
        provider = self.service.providers["torch"]
        assert isinstance(provider, TorchProvider)
        return provider


@asynccontextmanager
async def running_node(home: Path, models: Sequence[dict[str, Any]], **providers: Any) -> AsyncIterator[Node]:
    """Serve `models` from `home` until the block ends."""
    built: list[InferenceNode] = []

    def remember(context: ServiceContext) -> InferenceNode:
        built.append(build(context))
        return built[0]

    sockets = home / "run"
    config = StackConfig(
        file="test",
        runtime=RuntimeConfig(tcp=False, socket_dir=sockets, drain_grace_seconds=0.5, drain_notice_seconds=0),
        sections={"inference": {"models": list(models), "providers": providers}},
    )
    async with hosting({"inference": remember}, config=config, home=home) as hosted:
        await hosted[0].context.readiness.wait()
        address = hosted[0].addresses[0]
        async with StackClient({"inference": address}) as client:
            yield Node(built[0], client, hosted[0], address)


@pytest.fixture
async def scripted(tmp_path: Path) -> AsyncIterator[Node]:
    """A node without an engine."""
    async with running_node(tmp_path, [SCRIPTED, SCRIPTED_EMBEDDING]) as node:
        yield node


@pytest.fixture(scope="session")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """A node with the real small models, in float32 so that equality can be asked for."""
    home = tmp_path_factory.mktemp("real")
    async with running_node(home, [SMOL, MINILM, SCRIPTED], torch={"dtype": "float32"}) as node:
        yield node
