"""Inference with a scripted model and agents beside it, behind unix sockets in one process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamastack import v1
from services.agents.node import AgentsNode
from services.agents.node import build as build_agents
from services.inference.node import build as build_inference
from services.runtime.config import RuntimeConfig, StackConfig
from services.runtime.process import Build, drain, hosting
from services.runtime.server import Hosted
from services.runtime.service import ServiceContext
from stack_client import StackClient
from stack_client.content import content
from tests.agents import tool_server

PAY = {"tool_name": "pay", "arguments": {"n": 1}}
WEATHER = {"tool_name": "get_weather", "arguments": {"city": "Oslo"}}
TIME = {"tool_name": "get_time", "arguments": {"zone": "UTC"}}
SCRIPT = [
    {"match": "^weather", "role": "user", "tools": True, "reply": "Looking.", "tool_calls": [WEATHER]},
    {"match": "^two", "role": "user", "tools": True, "tool_calls": [WEATHER, TIME]},
    {"match": "^unknown", "role": "user", "tools": True, "tool_calls": [{"tool_name": "fly"}, WEATHER]},
    {"match": "^lost", "role": "user", "tools": True, "tool_calls": [{"tool_name": "fly"}]},
    {"match": "^again", "tools": True, "tool_calls": [WEATHER]},
    *(
        {
            "match": f"^use {name}$",
            "role": "user",
            "tools": True,
            "tool_calls": [{"tool_name": name, "arguments": {"n": 1}}],
        }
        for name in tool_server.EFFECTS
    ),
    {
        "match": "^pay twice",
        "role": "user",
        "tools": True,
        "tool_calls": [PAY, {"tool_name": "pay", "arguments": {"n": 2}}],
    },
    {
        "match": "^three",
        "role": "user",
        "tools": True,
        "tool_calls": [{"tool_name": "barrier"}, {"tool_name": "fails"}, {"tool_name": "barrier"}],
    },
    {"match": "^one away", "role": "user", "tools": True, "tool_calls": [{"tool_name": "away"}, PAY]},
    {"match": "^mixed", "role": "user", "tools": True, "tool_calls": [PAY, WEATHER, {"tool_name": "look"}]},
    {
        "match": "^chain",
        "role": "user",
        "tools": True,
        "tool_calls": [{"tool_name": "look", "arguments": {"then": "put"}}],
    },
    {
        "match": '^look .*"then": "put"',
        "role": "tool",
        "tools": True,
        "tool_calls": [{"tool_name": "put", "arguments": {"then": "pay"}}],
    },
    {"match": '^put .*"then": "pay"', "role": "tool", "tools": True, "tool_calls": [PAY]},
    {
        "match": "^ask helper (.*)$",
        "role": "user",
        "tools": True,
        "tool_calls": [{"tool_name": "helper", "arguments": {"message": "weather please"}}],
    },
    {
        "match": "^tell helper$",
        "role": "user",
        "tools": True,
        "tool_calls": [{"tool_name": "helper", "arguments": {"message": "use pay"}}],
    },
    {
        "match": "^loop$",
        "role": "user",
        "tools": True,
        "tool_calls": [{"tool_name": "helper", "arguments": {"message": "loop"}}],
    },
    {"match": "^hand over", "role": "user", "tools": True, "tool_calls": [{"tool_name": "transfer"}]},
    {"match": "Summarise the dialog", "role": "system", "reply": "never asked this way"},
    {
        "match": "^search all$",
        "role": "user",
        "tools": True,
        "reply": "Searching.",
        "tool_calls": [{"tool_name": "brave_search", "arguments": {"query": "pages"}}],
    },
    {
        "match": "^search (.*)$",
        "role": "user",
        "tools": True,
        "reply": "Searching.",
        "tool_calls": [{"tool_name": "brave_search", "arguments": {"query": "news"}}],
    },
    {
        "match": "^echo it$",
        "role": "user",
        "tools": True,
        "tool_calls": [{"tool_name": "echo", "arguments": {"text": "far away"}}],
    },
    {
        "match": "^find (.*)$",
        "role": "user",
        "tools": True,
        "tool_calls": [{"tool_name": "knowledge_search", "arguments": {"query": "news"}}],
    },
    {"role": "tool", "reply": "The tool says: {0}"},
    {"match": "^slow (.*)$", "reply": "{1}", "token_seconds": 0.002},
    {"match": "^hang", "reply": "before", "hang": True},
    {"match": "^break", "reply": "half an", "error": "the script breaks here"},
]
SCRIPTED = {"model_id": "scripted", "provider_id": "scripted", "metadata": {"script": SCRIPT}}
TOOLS = [v1.ToolDef(name="get_weather"), v1.ToolDef(name="get_time")]
ENDS = {"turn_complete", "turn_failed", "turn_cancelled", "turn_awaiting_input"}


@dataclass
class Mesh:
    """Running services, a client of them, and short forms of what tests ask for."""

    client: StackClient
    config: StackConfig
    home: Path
    hosted: Sequence[Hosted]
    nodes: list[AgentsNode] = field(default_factory=list)
    servers: list[tool_server.ToolServer] = field(default_factory=list)

    @property
    def stub(self) -> Any:
        return v1.AgentsServiceStub(self.client.channel("agents"))

    @property
    def tools(self) -> tool_server.ToolServer:
        return self.servers[-1]

    @property
    def node(self) -> AgentsNode:
        return self.nodes[-1]

    async def agent(self, **settings: Any) -> str:
        return await self.client.agents.create(v1.AgentConfig(**{"model": "scripted", **settings}))

    async def session(self, **settings: Any) -> tuple[str, str]:
        """A new agent and a session of it."""
        agent_id = await self.agent(**settings)
        return agent_id, await self.client.agents.create_session(agent_id, "test")

    async def ask(self, agent_id: str, session_id: str, text: str) -> v1.Turn:
        return await self.client.agents.create_turn(agent_id, session_id, [user(text)])

    async def start(self, text: str, **settings: Any) -> v1.Turn:
        """A turn of a new session."""
        return await self.ask(*await self.session(**settings), text)

    async def watch(self, turn_id: str, after: int = 0) -> list[v1.WatchTurnResponse]:
        """The events of a stream until its end."""
        return [event async for event in self.client.agents.watch_turn(turn_id, after_sequence=after)]

    async def answer(self, turn_id: str, **texts: str) -> v1.Turn:
        """Resume with results by call id."""
        return await self.client.agents.resume_turn(turn_id, [result(key, text) for key, text in texts.items()])

    async def run(self, text: str, **settings: Any) -> v1.Turn:
        """A whole turn of a new session, as it is stored in the end."""
        turn = await self.start(text, **settings)
        await self.watch(turn.turn_id)
        return await self.client.agents.get_turn(turn.turn_id)


def user(text: str) -> v1.TurnInputMessage:
    return v1.TurnInputMessage(user=v1.UserMessage(content=content(text)))


def result(call_id: str, text: str) -> v1.ToolResponse:
    return v1.ToolResponse(call_id=call_id, content=content(text))


def kinds(events: Sequence[v1.WatchTurnResponse]) -> list[str]:
    return [event.WhichOneof("event") or "" for event in events]


def text_of(events: Sequence[v1.WatchTurnResponse]) -> str:
    """What the model has said; a step that began anew voids what it had said."""
    texts: dict[str, str] = {}
    for event in events:
        if event.WhichOneof("event") == "step_restarted":
            texts[event.step_restarted.step_id] = ""
        elif event.WhichOneof("event") == "step_progress":
            progress = event.step_progress
            texts[progress.step_id] = texts.get(progress.step_id, "") + progress.delta.text
    return "".join(texts.values())


def check_dense(events: Sequence[v1.WatchTurnResponse], first: int = 1) -> None:
    numbered = [event.sequence for event in events if event.sequence]
    assert numbered == list(range(first, first + len(numbered)))


async def until(condition: Callable[[], Awaitable[bool] | bool], seconds: float = 20) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(seconds):
        while True:
            now = condition()
            if now if isinstance(now, bool) else await now:
                return
            await asyncio.sleep(0.005)


async def until_event(mesh: Mesh, turn_id: str, kind: str) -> None:
    """Wait until a turn has shown an event."""
    async with asyncio.timeout(20), mesh.client.agents.watch_turn(turn_id) as stream:
        async for event in stream:
            if event.WhichOneof("event") == kind:
                return
    raise AssertionError(f"turn {turn_id} showed no {kind}")


def stack_config(
    home: Path, *, inference: str = "", tools: str = "", models: Sequence[Any] = (SCRIPTED,), **agents: Any
) -> StackConfig:
    addresses = {"inference": inference or f"unix:{home}/run/inference.sock", "agents": f"unix:{home}/run/agents.sock"}
    if tools:
        addresses["tools"] = tools
    settings = {"inference_attempts": 2, "inference_retry_seconds": 0.01, **agents}
    return StackConfig(
        file="test",
        addresses=addresses,
        runtime=RuntimeConfig(
            tcp=False, socket_dir=home / "run", drain_grace_seconds=0.3, drain_notice_seconds=0, log_level="WARNING"
        ),
        sections={"inference": {"models": list(models)}, "agents": settings},
    )


@asynccontextmanager
async def running_mesh(home: Path, *services: str, inference: str = "", **agents: Any) -> AsyncIterator[Mesh]:
    """Host services until the block ends: `agents` unless named; `inference` is the address of one that runs."""
    nodes: list[AgentsNode] = []
    servers: list[tool_server.ToolServer] = []

    def serve_tools(context: ServiceContext) -> tool_server.ToolServer:
        servers.append(tool_server.build(context))
        return servers[-1]

    def remember(context: ServiceContext) -> AgentsNode:
        nodes.append(build_agents(context))
        return nodes[-1]

    builds: Mapping[str, Build] = {"inference": build_inference, "agents": remember, "tools": serve_tools}
    tools = agents.pop("tools", f"unix:{home}/run/tools.sock" if "tools" in services else "")
    config = stack_config(home, inference=inference, tools=tools, **agents)
    chosen = {name: builds[name] for name in services or ["agents"]}
    async with hosting(chosen, config=config, home=home) as hosted:
        for item in hosted:
            await item.context.readiness.wait()
        async with StackClient(config.addresses) as client:
            yield Mesh(client, config, home, hosted, nodes, servers)


async def drained(mesh: Mesh) -> None:
    await drain(mesh.hosted)
