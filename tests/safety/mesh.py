"""Inference with scripted models, safety and agents in one process, and a guard that knows forbidden words."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamastack import v1
from services.agents.node import build as build_agents
from services.inference.node import build as build_inference
from services.runtime.config import RuntimeConfig, StackConfig
from services.runtime.process import Build, hosting
from services.runtime.service import ServiceContext
from services.safety.node import SafetyNode
from services.safety.providers import PROVIDERS
from services.safety.shield import Judgement, ProviderContext, Shield, ShieldProvider, Span, Subject, Surface
from stack_client import StackClient
from stack_client.errors import UnavailableError

NUMBERS = itertools.count(1)
FORBIDDEN = re.compile(r"forbidden\d*")


@dataclass
class Seen:
    """What the guard was shown."""

    subjects: list[Subject] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [subject.text for subject in self.subjects]


@dataclass
class WordShield:
    """Finds `forbidden`; its parameters make it slow, broken or short-sighted."""

    seen: Seen
    params: Mapping[str, Any]
    open: asyncio.Event
    baseline: bool = False
    streams: bool = True
    every_message: bool = False

    def default_threshold(self, surface: Surface) -> float:
        return 0.5

    async def judge(self, subject: Subject) -> Judgement:
        self.seen.subjects.append(subject)
        match self.params.get("mode"):
            case "hang":
                await asyncio.Event().wait()
            case "gate":
                await self.open.wait()
            case "dead":
                raise UnavailableError("the guard died")
            case "crash":
                raise ZeroDivisionError("oops")
            case "nonsense":
                return Judgement(failure="the guard answered 'banana'")
            case "half":
                return Judgement(score=0.0, coverage=0.5)
            case "silent":
                return Judgement()
        spans = tuple(Span(start=m.start(), end=m.end(), code="S1") for m in FORBIDDEN.finditer(subject.text))
        score = float(self.params.get("score", 0.9)) if spans else 0.1
        sent = len(subject.text.encode())
        return Judgement(
            codes=("S1",) if spans else (), score=score, score_kind=v1.SCORE_KIND_PROBABILITY, spans=spans,
            category_scores={"S1": score}, guard_calls=1, guard_bytes=sent, guard_tokens=len(subject.text.split()),
        )  # fmt: skip


@dataclass
class WordProvider:
    """Makes them."""

    seen: Seen
    open: asyncio.Event
    provider_type: str = "inline::words"

    async def create(self, shield: v1.Shield, params: Mapping[str, Any]) -> Shield:
        return WordShield(self.seen, params, self.open, streams=params.get("mode") != "whole")


@dataclass
class SafetyMesh:
    """Running services and a client of them."""

    client: StackClient
    node: SafetyNode
    seen: Seen
    open: asyncio.Event
    home: Path

    async def shield(self, name: str = "", **params: Any) -> str:
        name = name or f"words-{next(NUMBERS)}"
        await self.client.shields.register(name, provider_id="words", params=params or None)
        return name

    async def moderated(
        self, pieces: Sequence[str], *shields: str, messages: Any = "How?", **settings: Any
    ) -> list[v1.StreamModerateResponse]:
        """All events of a moderated text; each piece is sent when the service has had time to act on the last."""
        events: list[v1.StreamModerateResponse] = []
        async with self.client.safety.stream_moderate(list(shields), messages, **settings) as stream:

            async def send() -> None:
                for piece in pieces:
                    await stream.send(piece)
                await stream.end()

            sending = asyncio.create_task(send())
            try:
                events += [event async for event in stream]
            finally:
                sending.cancel()
        return events


SCRIPT = [
    {"match": "^say (.+)", "reply": "{1}"},
    {"match": "^hang", "reply": "one two three.", "hang": True},
    {"match": "^break", "reply": "one two", "error": "the script breaks here"},
    {"match": "^weather", "tools": True, "tool_calls": [{"tool_name": "get_weather", "arguments": {"city": "Oslo"}}]},
    {"match": "^look first", "tools": True, "reply": "A look. Then more", "tool_calls": [{"tool_name": "get_weather"}]},
    {"match": "^look badly", "tools": True, "reply": "Now forbidden", "tool_calls": [{"tool_name": "get_weather"}]},
    {"match": "^evil", "tools": True, "tool_calls": [{"tool_name": "get_weather", "arguments": {"city": "forbidden"}}]},
    {"role": "tool", "reply": "The tool says: {0}"},
]
MODELS = [
    {"model_id": "scripted", "provider_id": "scripted", "metadata": {"script": SCRIPT}},
]


@asynccontextmanager
async def safety_mesh(
    home: Path, *, models: Sequence[Mapping[str, Any]] = (), providers: bool = False, **safety: Any
) -> AsyncIterator[SafetyMesh]:
    """Host inference, safety and agents until the block ends; `providers` adds those of the product."""
    seen, nodes, gate = Seen(), list[SafetyNode](), asyncio.Event()

    def make(context: ProviderContext) -> ShieldProvider:
        return WordProvider(seen, gate)

    def build_safety(context: ServiceContext) -> SafetyNode:
        chosen: dict[str, Callable[[ProviderContext], ShieldProvider]] = {"words": make}
        nodes.append(SafetyNode(context, providers={**PROVIDERS, **chosen} if providers else chosen))
        return nodes[-1]

    names = ("inference", "safety", "agents")
    config = StackConfig(
        file="test",
        addresses={name: f"unix:{home}/run/{name}.sock" for name in names},
        runtime=RuntimeConfig(
            tcp=False, socket_dir=home / "run", drain_grace_seconds=0.3, drain_notice_seconds=0, log_level="WARNING"
        ),
        sections={
            "inference": {"models": [*MODELS, *models]},
            "safety": {"baseline": False, **safety},
            "agents": {"inference_attempts": 2, "inference_retry_seconds": 0.01},
        },
    )
    builds: dict[str, Build] = {"inference": build_inference, "safety": build_safety, "agents": build_agents}
    async with hosting(builds, config=config, home=home) as hosted:
        for item in hosted:
            await item.context.readiness.wait()
        async with StackClient(config.addresses) as client:
            yield SafetyMesh(client, nodes[-1], seen, gate, home)
