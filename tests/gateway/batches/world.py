"""A gateway that has batches only, with scripted answers; files are those of a real memory service."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from llamastack import v1
from services.gateway.batches import Batches, BatchesConfig, upgrade
from services.gateway.batches.tables import batches
from services.runtime.config import RuntimeConfig, StackConfig
from services.runtime.database import Database
from services.runtime.listen import open_channel
from services.runtime.process import hosting
from services.runtime.service import ServiceContext
from stack_client import StackClient
from stack_client.errors import NotFoundError, ResourceExhaustedError

CHAT = "/v1/chat/completions"
MODELS = ("small", "large")
ENDED = (v1.BATCH_STATUS_COMPLETED, v1.BATCH_STATUS_FAILED, v1.BATCH_STATUS_CANCELLED, v1.BATCH_STATUS_EXPIRED)


@dataclass
class Script:
    """`Execute`: what a body's `do` says happens, and every call is noted."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    """Text and tenant of each."""
    request_ids: dict[str, set[str]] = field(default_factory=dict)
    """By text."""
    release: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to let hanging calls go."""
    cancelled: int = 0
    running: int = 0
    most: int = 0
    """Calls that ran at once."""
    file: Path | None = None
    """Gets a line with each call."""

    async def __call__(
        self, endpoint: str, body: dict[str, Any], *, tenant: str, request_id: str
    ) -> tuple[int, dict[str, Any]]:
        text = body["text"]
        self.calls.append((text, tenant))
        self.request_ids.setdefault(text, set()).add(request_id)
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(f"{text}\n")
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await self._answer(body, text)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, body: dict[str, Any], text: str) -> tuple[int, dict[str, Any]]:
        await asyncio.sleep(0)
        match body.get("do"):
            case "hang":
                await self.release.wait()
            case "overload" if self.times(text) <= body["times"]:
                return body.get("status", 429), {"error": {"message": "too much"}}
            case "refuse":
                return 400, {"error": {"message": "no"}}
            case "missing":
                raise NotFoundError("no such thing")
            case "bug":
                raise ZeroDivisionError
            case "odd":
                return 200, {"text": 1 << 70}
            case "busy" if self.times(text) == 1:
                raise ResourceExhaustedError("too much", retry_after=0.01)
        usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
        return 200, {"object": "chat.completion", "text": text.upper(), "usage": usage}

    def times(self, text: str) -> int:
        return sum(said == text for said, _ in self.calls)


async def knows_model(model: str) -> bool:
    return model in MODELS


class Node:
    """The service."""

    name = "gateway"

    def __init__(self, context: ServiceContext, *, script: Script, database: Database) -> None:
        self.readiness = context.readiness
        self._context = context
        self._script = script
        self._database = database
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._open.enter_async_context(self._database)
        channel = open_channel(self._context.addresses["memory"], config=self._context.runtime)  # as the gateway's
        self._open.push_async_callback(channel.close, None)
        self.batches = Batches(
            self._database,
            channel,
            self._script,
            self._context.section(BatchesConfig),
            draining=self._context.draining,
            knows_model=knows_model,
        )
        await self._open.enter_async_context(self.batches)
        self.readiness.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._open.aclose()

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        v1.add_BatchesServiceServicer_to_server(self.batches.service, server)
        return ["llamastack.v1.BatchesService"]


def open_database(url: str) -> Database:
    return Database(url, owner="gateway", upgrade=upgrade)


@dataclass
class World:
    """A running gateway, what it answers with, and short forms of what tests ask for."""

    client: StackClient
    script: Script
    database: Database
    nodes: list[Node] = field(default_factory=list)

    @property
    def runner_is_busy(self) -> bool:
        return bool(self.nodes[-1].batches._runner._active)

    @property
    def stub(self) -> Any:
        return v1.BatchesServiceStub(self.client.channel("gateway"))

    async def upload(self, requests: Sequence[Mapping[str, Any]] | bytes, *, purpose: str = "batch") -> str:
        content = requests if isinstance(requests, bytes) else jsonl(requests)
        return (await self.client.files.upload(content, filename="in.jsonl", purpose=purpose)).id

    async def start(self, requests: Sequence[Mapping[str, Any]] | bytes, **settings: Any) -> v1.Batch:
        return await self.client.batches.create(await self.upload(requests), CHAT, **settings)

    async def run(self, requests: Sequence[Mapping[str, Any]] | bytes) -> v1.Batch:
        batch = await self.start(requests)
        async with asyncio.timeout(30):
            return await self.client.batches.wait(batch.id)

    async def lines(self, file_id: str) -> list[dict[str, Any]]:
        content = await self.client.files.download(file_id)
        return [json.loads(line) for line in content.splitlines()]

    async def change(self, batch_id: str, **columns: Any) -> None:
        """Change a batch's row, as time or another process would."""
        async with self.database.write() as connection:
            await connection.execute(batches.update().where(batches.c.batch_id == batch_id).values(**columns))


def request(name: str, **body: Any) -> dict[str, Any]:
    """A line of an input file."""
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": {"model": "small", "text": name, **body}}


def jsonl(requests: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in requests)


@asynccontextmanager
async def gateway(
    home: Path, memory: str, *, database: Database | None = None, script: Script | None = None, **config: Any
) -> AsyncIterator[World]:
    """A gateway until the block ends; `memory` is the address of the service with the files."""
    script = script or Script()
    database = database or open_database(f"sqlite:///{home}/gateway.db")
    stack = StackConfig(
        file="test",
        addresses={"gateway": f"unix:{home}/gateway.sock", "memory": memory},
        runtime=RuntimeConfig(
            tcp=False, socket_dir=home, drain_grace_seconds=0.3, drain_notice_seconds=0, log_level="WARNING"
        ),
        sections={"gateway": {"poll_seconds": 0.05, "retry_seconds": 0.01, **config}},
    )
    nodes: list[Node] = []

    def build(context: ServiceContext) -> Node:
        nodes.append(Node(context, script=script, database=database))
        return nodes[-1]

    async with hosting({"gateway": build}, config=stack, home=home), StackClient(stack.addresses) as client:
        yield World(client, script, database, nodes)


async def until(condition: Callable[[], Awaitable[bool] | bool], seconds: float = 20) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(seconds):
        while True:
            now = condition()
            if now if isinstance(now, bool) else await now:
                return
            await asyncio.sleep(0.005)
