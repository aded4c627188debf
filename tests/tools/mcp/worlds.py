"""The provider as the service makes it, and calls as the runtime makes them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from llamastack import v1
from services.runtime.config import StackConfig, TelemetryConfig
from services.runtime.readiness import Readiness
from services.runtime.service import ServiceContext
from services.runtime.telemetry import Telemetry
from services.tools.mcp.calls import Calls
from services.tools.mcp.pool import Pool
from services.tools.provider import Access, Call, ProviderContext
from services.tools.providers.model_context_protocol import ModelContextProtocol

SECONDS = 20.0


@dataclass
class Reported:
    progressed: list[tuple[float | None, str]] = field(default_factory=list)
    outputs: list[tuple[str, str]] = field(default_factory=list)

    def progress(self, fraction: float | None, message: str = "") -> None:
        self.progressed.append((fraction, message))

    def output(self, stream: str, text: str) -> None:
        self.outputs.append((stream, text))


def provider(
    folder: Path, *, allow: tuple[str, ...] = ("127.0.0.1",), secrets: Mapping[str, Any] | None = None, **config: Any
) -> ModelContextProtocol:
    stack = StackConfig(file="test", sections={"tools": {"egress_allow": list(allow), "secrets": secrets or {}}})
    service = ServiceContext(
        name="tools",
        config=stack,
        data_dir=folder,
        cache_dir=folder,
        readiness=Readiness(name="tools"),
        draining=asyncio.Event(),
        telemetry=Telemetry(config=TelemetryConfig(), process="test"),
    )
    return ModelContextProtocol(ProviderContext(service=service, config=config, data_dir=folder))


def group(uri: str, identifier: str = "mcp::peer", **settings: Any) -> v1.ToolGroup:
    return v1.ToolGroup(
        identifier=identifier,
        provider_id="model-context-protocol",
        mcp_endpoint=v1.URL(uri=uri),
        settings=v1.ToolGroupSettings(**settings),
    )


def call(
    uri: str,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    access: Access | None = None,
    report: Reported | None = None,
    response: v1.ToolInputResponse | None = None,
    method: str = "tools/call",
) -> Call:
    tool = v1.ToolDef(name=name)
    tool.metadata.update({"mcp_method": method})
    return Call(
        group=group(uri),
        tool=tool,
        arguments=arguments or {},
        access=access or Access(),
        idempotency_key="key-1",
        call_id="call-1",
        timeout=SECONDS,
        input_response=response,
        report=report or Reported(),
    )


def text(result: v1.ToolInvocationResult) -> str:
    return "\n".join(item.text for item in result.content.items)


async def until(condition: Any, *, seconds: float = SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def plain(message: Any) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def pool(mcp: ModelContextProtocol) -> Pool:
    assert mcp._client is not None
    return mcp._client.pool


def calls(mcp: ModelContextProtocol) -> Calls:
    assert mcp._client is not None
    return mcp._client.calls
