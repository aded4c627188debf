"""Inference with scripted models and the memory service beside it, behind unix sockets in one process."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamastack import v1
from services.inference.node import build as build_inference
from services.memory.node import MemoryNode
from services.memory.node import build as build_memory
from services.runtime.config import RuntimeConfig, StackConfig
from services.runtime.process import Build, drain, hosting
from services.runtime.service import ServiceContext
from stack_client import StackClient

EMBEDDING = "words"
"""A scripted model: hashes words into 16 dimensions."""
MODELS: list[Mapping[str, Any]] = [
    {"model_id": EMBEDDING, "provider_id": "scripted", "model_type": "embedding"},
    {"model_id": "words-again", "provider_id": "scripted", "model_type": "embedding"},
    {"model_id": "scripted", "provider_id": "scripted", "metadata": {"script": [{"reply": "{0}"}]}},
]


RERANK = {"model_id": "shares", "provider_id": "scripted", "model_type": "rerank"}
"""A scripted model: scores a text by the share of the question's words in it; not of `MODELS`, which have none."""


@dataclass
class MemoryMesh:
    """Running services and stubs of them."""

    client: StackClient
    node: MemoryNode
    home: Path

    def stub(self, make: Callable[..., Any]) -> Any:
        return make(self.client.channel("memory"))

    @property
    def banks(self) -> Any:
        return self.stub(v1.MemoryBanksServiceStub)

    async def bank(self, name: str, **params: Any) -> v1.MemoryBank:
        """A new bank; `vector={}` and the like choose its kind."""
        request = v1.RegisterMemoryBankRequest(memory_bank_id=name, params=v1.BankParams(**params))
        response: v1.RegisterMemoryBankResponse = await self.banks.RegisterMemoryBank(request)
        return response.memory_bank


@asynccontextmanager
async def memory_mesh(
    home: Path, *, models: Sequence[Mapping[str, Any]] = MODELS, **memory: Any
) -> AsyncIterator[MemoryMesh]:
    """Both services with their data in `home`, whose path must be short; `memory` is the service's configuration."""
    nodes: list[MemoryNode] = []

    def build(context: ServiceContext) -> MemoryNode:
        nodes.append(build_memory(context))
        return nodes[-1]

    config = StackConfig(
        file="test",
        addresses={name: f"unix:{home}/run/{name}.sock" for name in ("inference", "memory")},
        runtime=RuntimeConfig(
            tcp=False, socket_dir=home / "run", drain_grace_seconds=0.3, drain_notice_seconds=0, log_level="WARNING"
        ),
        sections={"inference": {"models": list(models)}, "memory": memory},
    )
    builds: dict[str, Build] = {"inference": build_inference, "memory": build}
    async with hosting(builds, config=config, home=home) as hosted, StackClient(config.addresses) as client:
        await client.models.wait_ready(EMBEDDING, timeout=30)
        try:
            yield MemoryMesh(client=client, node=nodes[-1], home=home)
        finally:
            await drain(hosted)
