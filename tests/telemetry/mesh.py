"""The telemetry service behind a unix socket in this process, alone or with the services whose calls it records."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc

from llamastack import v1
from services.agents.node import build as build_agents
from services.inference.node import build as build_inference
from services.runtime.config import RuntimeConfig, StackConfig, TelemetryConfig
from services.runtime.process import Build, drain, hosting
from services.telemetry.node import build as build_telemetry
from services.tools.node import build as build_tools
from stack_client import StackClient

T = TypeVar("T")
SCRIPT = [
    {
        "match": "^when",
        "role": "user",
        "tools": True,
        "tool_calls": [{"tool_name": "wolfram_alpha", "arguments": {"query": "6 * 7"}}],
    },
    {
        "match": "^ask helper",
        "role": "user",
        "tools": True,
        "tool_calls": [{"tool_name": "helper", "arguments": {"message": "when is it?"}}],
    },
    {"role": "tool", "reply": "The tool says: {0}"},
    {"match": "^hang", "reply": "before", "hang": True},
    {"match": "^say (.*)$", "reply": "{1}"},
]
MODELS = [{"model_id": "scripted", "provider_id": "scripted", "metadata": {"script": SCRIPT}}]
BUILDS: Mapping[str, Build] = {
    "telemetry": build_telemetry,
    "inference": build_inference,
    "tools": build_tools,
    "agents": build_agents,
}


@dataclass
class TelemetryMesh:
    """Running services and a client of them."""

    client: StackClient
    hosted: Any

    @property
    def stub(self) -> Any:
        return v1.TelemetryServiceStub(self.client.channel("telemetry"))

    async def flush(self) -> None:
        """All spans that have ended are stored."""
        await self.hosted[0].context.telemetry.flush()


def stack_config(home: Path, *names: str, sample: float = 1.0, **settings: Any) -> StackConfig:
    return StackConfig(
        file="test",
        addresses={name: f"unix:{home}/run/{name}.sock" for name in names},
        runtime=RuntimeConfig(
            tcp=False,
            socket_dir=home / "run",
            drain_grace_seconds=0.3,
            drain_notice_seconds=0,
            log_level="WARNING",
            telemetry=TelemetryConfig(traces=True, sample=sample),
        ),
        sections={
            "telemetry": settings,
            "inference": {"models": MODELS},
            "tools": {"providers": {"code-interpreter": {"prepare": "use"}}},
        },
    )


@asynccontextmanager
async def telemetry_mesh(
    home: Path, *services: str, sample: float = 1.0, **settings: Any
) -> AsyncIterator[TelemetryMesh]:
    """Host services until the block ends; `home` must be short, `settings` are those of the telemetry service."""
    names = ["telemetry", *services]
    config = stack_config(home, *names, sample=sample, **settings)
    async with hosting({name: BUILDS[name] for name in names}, config=config, home=home) as hosted:
        for item in hosted:
            await item.context.readiness.wait()
        async with StackClient(config.addresses) as client:
            try:
                yield TelemetryMesh(client, hosted)
            finally:
                await drain(hosted)


async def until(look: Callable[[], Awaitable[T | None]], seconds: float = 20) -> T:
    """Wait for an answer."""
    async with asyncio.timeout(seconds):
        while True:
            found = await look()
            if found:
                return found
            await asyncio.sleep(0.01)


def of(tenant: str) -> grpc.aio.Metadata | None:
    return grpc.aio.Metadata(("x-tenant", tenant)) if tenant else None


def event(trace_id: str, span_id: str, *, at: float | None = None, facts: Any = None, **kind: Any) -> v1.TelemetryEvent:
    made = v1.TelemetryEvent(trace_id=trace_id, span_id=span_id, **kind)
    made.timestamp.FromNanoseconds(int((time.time() if at is None else at) * 1e9))
    made.attributes.update(facts or {})
    return made


def start(name: str, parent: str | None = None) -> v1.StructuredLog:
    return v1.StructuredLog(span_start=v1.SpanStart(name=name, parent_span_id=parent))


def end(status: "v1.SpanStatus.ValueType" = v1.SPAN_STATUS_OK) -> v1.StructuredLog:
    return v1.StructuredLog(span_end=v1.SpanEnd(status=status))
