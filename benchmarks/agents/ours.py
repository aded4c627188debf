"""Our turns with a model and a tool that cost nothing: what is left is the durable loop itself."""

import asyncio
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from llamastack import v1
from services.agents import rows
from services.agents.config import AgentsConfig
from services.agents.notices import NoFanOut, Notices
from services.agents.retrieval import Retrieval
from services.agents.runner import TurnRunner
from services.agents.store import AgentStore
from services.agents.turn import Around
from services.agents.turn_log import now
from stack_client.content import content, struct

GROUP = "bench"
CALL = v1.ToolCall(call_id="call_1", tool_name="get_weather", arguments_json='{"city": "Oslo"}')


class Stream:
    """The events of one answer."""

    def __init__(self, events: Sequence[v1.StreamChatCompletionResponse]) -> None:
        self._events = iter(events)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> v1.StreamChatCompletionResponse:
        try:
            return next(self._events)
        except StopIteration:
            raise StopAsyncIteration from None


class Model:
    """Calls the tool, then answers."""

    def __init__(self) -> None:
        self.asked_at = 0.0
        usage = v1.Usage(prompt_tokens=10, completion_tokens=5, total_tokens=15)
        calling = v1.CompletionMessage(stop_reason=v1.STOP_REASON_END_OF_MESSAGE, tool_calls=[CALL])
        said = v1.CompletionMessage(stop_reason=v1.STOP_REASON_END_OF_TURN, content=content("It is sunny in Oslo."))
        self._call = [v1.StreamChatCompletionResponse(sequence=1, complete=_complete(calling, usage))]
        delta = v1.ContentDelta(text="It is sunny in Oslo.")
        self._answer = [
            v1.StreamChatCompletionResponse(sequence=1, progress=v1.ChatCompletionProgress(delta=delta)),
            v1.StreamChatCompletionResponse(sequence=2, complete=_complete(said, usage)),
        ]

    def stream(self, request: v1.StreamChatCompletionRequest) -> Stream:
        self.asked_at = time.perf_counter()
        called = request.request.messages[-1].WhichOneof("message") == "tool"
        return Stream(self._answer if called else self._call)


def _complete(message: v1.CompletionMessage, usage: v1.Usage) -> v1.ChatCompletionComplete:
    return v1.ChatCompletionComplete(completion_message=message, usage=usage)


class Tools:
    """One tool that answers at once."""

    def __init__(self) -> None:
        self.answered_at = 0.0
        schema = struct({"type": "object", "properties": {"city": {"type": "string"}}})
        self._tools = [
            v1.ToolDef(name="get_weather", description="The weather.", input_schema=schema, toolgroup_id=GROUP)
        ]

    async def tools(self, group: str) -> Sequence[v1.ToolDef]:
        return self._tools

    async def invoke(self, request: v1.InvokeToolRequest) -> AsyncIterator[v1.StreamInvokeToolResponse]:
        self.answered_at = time.perf_counter()
        yield v1.StreamInvokeToolResponse(sequence=1, result=v1.ToolInvocationResult(content=content("sunny")))

    async def invocation(self, key: str) -> v1.Invocation | None:
        return None

    async def cancel(self, key: str) -> None:
        return None


class Turns:
    """The agents service's own parts, without the wire."""

    def __init__(self, store: AgentStore, runner: TurnRunner, model: Model, tools: Tools) -> None:
        self.store, self.runner, self.model, self.tools = store, runner, model, tools
        self.agent_id = str(uuid.uuid4())

    async def prepare(self) -> None:
        config = v1.AgentConfig(model="m", instructions="Be short.", toolgroups=[v1.AgentToolGroup(name=GROUP)])
        agent = v1.Agent(agent_id=self.agent_id, agent_config=config, version=1)
        await self.store.write(lambda connection: rows.add_agent(connection, agent, tenant=""))

    async def session(self) -> str:
        session = v1.Session(session_id=str(uuid.uuid4()), agent_id=self.agent_id)
        await self.store.write(lambda connection: rows.add_session(connection, session, tenant=""))
        return session.session_id

    async def turn(self, session_id: str) -> int:
        """Create a turn as CreateTurn does and watch it to its end; returns its number of events."""
        asked = v1.TurnInputMessage(user=v1.UserMessage(content=content("How is the weather in Oslo?")))
        request = v1.CreateTurnRequest(agent_id=self.agent_id, session_id=session_id, messages=[asked])
        turn = v1.Turn(
            turn_id=str(uuid.uuid4()), session_id=session_id, input_messages=[asked], started_at=now(),
            status=v1.TURN_STATUS_QUEUED, agent_version=1,
        )  # fmt: skip

        def create(connection: sa.Connection) -> None:
            rows.add_turn(connection, turn, request, tenant="", **self.runner.lease)

        await self.store.write(create)
        self.runner.start(turn, fence=1)
        sequence = 0
        while True:
            for event in await self.runner.events(turn.turn_id, after=sequence):
                sequence = event.sequence
                if event.WhichOneof("event") == "turn_complete":
                    return sequence
                if event.WhichOneof("event") == "turn_failed":
                    raise RuntimeError(str(event))


@asynccontextmanager
async def turns(folder: Path, *, running_turns: int = 64) -> AsyncIterator[Turns]:
    model, tools = Model(), Tools()
    async with AgentStore(f"sqlite:///{folder}/agents.db") as store, asyncio.TaskGroup() as tasks:
        model_like: Any = model
        around = Around(
            inference=model_like,
            memory=Retrieval(None),
            toolbox=tools,
            limits=AgentsConfig(running_turns=running_turns),
        )
        runner = TurnRunner(store, around=around, notices=Notices(), fan_out=NoFanOut(), tasks=tasks)
        made = Turns(store, runner, model, tools)
        await made.prepare()
        yield made


async def one_session(count: int) -> tuple[float, float, float]:
    """CPU ms and wall ms a turn, and the median ms from a tool's result to the next call of the model."""
    with tempfile.TemporaryDirectory() as folder:
        async with turns(Path(folder)) as made:
            for _ in range(20):
                await made.turn(await made.session())
            sessions = [await made.session() for _ in range(count)]
            gaps = []
            cpu, wall = time.process_time(), time.perf_counter()
            for session in sessions:
                await made.turn(session)
                gaps.append((made.model.asked_at - made.tools.answered_at) * 1000)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            return cpu / count * 1000, wall / count * 1000, sorted(gaps)[len(gaps) // 2]


async def many_sessions(sessions: int, rounds: int) -> tuple[float, float, float]:
    """Turns/s, events/s and CPU ms a turn with so many sessions at once."""
    with tempfile.TemporaryDirectory() as folder:
        async with turns(Path(folder), running_turns=sessions) as made:
            ids = [await made.session() for _ in range(sessions)]

            async def talk(session_id: str) -> int:
                return sum([await made.turn(session_id) for _ in range(rounds)])

            cpu, wall = time.process_time(), time.perf_counter()
            events = sum(await asyncio.gather(*[talk(one) for one in ids]))
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            count = sessions * rounds
            return count / wall, events / wall, cpu / count * 1000
