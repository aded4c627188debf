"""`Agent`: a model with instructions and tools, one call to run it.

    agent = Agent("smollm2-135m", instructions="Answer in one sentence.", tools=[get_weather])
    print(agent.run("How is the weather in Oslo?"))

    for event in agent.stream("And in Rome?"):
        print(event.text, end="", flush=True)

`run` and `stream` are for synchronous code, `arun` and `astream` for asynchronous code; all speak in one session.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamastack import v1
from stack_client import content
from stack_client.client import StackClient
from stack_client.errors import CancelledError, InternalError, InvalidArgumentError, StackError, from_error_message
from stack_client.knowledge import Memory
from stack_client.portal import SyncStackClient, SyncStream
from stack_client.tools import FunctionTool, ToolFunction

_ENDS = {"turn_complete", "turn_failed", "turn_cancelled"}


@dataclass(frozen=True, kw_only=True)
class AgentResult:
    """The end of a run."""

    text: str
    """The answer."""
    turn: v1.Turn
    """The whole turn: steps, usage, times."""
    session_id: str
    """The session, to go on from another process."""

    @property
    def tool_calls(self) -> list[v1.ToolCall]:
        """The tools that were called, in order."""
        return [call for step in self.turn.steps for call in step.tool_execution.tool_calls]

    @property
    def usage(self) -> v1.Usage:
        """Tokens used by all steps."""
        return self.turn.usage

    @property
    def violation(self) -> v1.StepViolation | None:
        """What a shield blocked this run for; None when none did."""
        violations = [step.shield_call.violation for step in self.turn.steps]
        return next((found for found in violations if found.violation_level == "error"), None)

    def __str__(self) -> str:
        """The answer."""
        return self.text


@dataclass(frozen=True, kw_only=True)
class AgentEvent:
    """Something that happened in a run; `text` is empty except for pieces of the answer."""

    text: str = ""
    """A piece of the model's text."""
    tool_call: v1.ToolCall | None = None
    """The model calls a tool."""
    tool_response: v1.ToolResponse | None = None
    """A tool answered."""
    violation: v1.StepViolation | None = None
    """A shield found something; with level `error` the run ends with the shield's message as its answer."""
    restarted: bool = False
    """The step began anew after a fault: text since the step's start is void."""
    result: AgentResult | None = None
    """The end of the run; set on the last event only."""
    raw: v1.WatchTurnResponse | None = field(default=None, repr=False)
    """The service's event."""


class Agent:
    """A model with instructions and tools.

    Nothing is sent before the first run. One agent speaks in one session; `session_id` goes on with an older one, which
    must have been begun with the same model, instructions, settings and tools.

    Args:
        model: Identifier of the model.
        instructions: The system message.
        tools: Python functions; type hints and docstring tell the model how to call them. Plain functions run in
            threads, asynchronous ones on the loop that the run is on.
        tool_choice: `auto`, `required`, `none` or the name of a tool; empty means auto.
        memory: What the agent remembers: banks by name, paths and patterns of files, or `Memory` objects. They are
            brought up to date before the first run; passages that fit a question are put before the model with it.
        shields: Shields that judge what the user and the tools say before the model's answer is shown, and the answer
            before it is shown; `policy` stands for those that the stack's policy binds.
        input_shields: The same for what goes in only.
        output_shields: The same for the answer only.
        session_id: Session to go on with; None begins a new one at the first run.
        max_infer_iters: Model calls per run at most.
        client: Says which stack, and is used where it fits: `run` and `stream` need a SyncStackClient, `arun` and
            `astream` a StackClient; the other is made when needed. None is the stack on this machine.
        sampling: temperature, top_p, top_k, max_tokens, stop, seed and penalties.
    """

    def __init__(
        self,
        model: str,
        *,
        instructions: str = "",
        tools: Sequence[ToolFunction] = (),
        tool_choice: str = "",
        memory: str | Path | Memory | Sequence[str | Path | Memory] = (),
        shields: Sequence[str] = (),
        input_shields: Sequence[str] = (),
        output_shields: Sequence[str] = (),
        session_id: str | None = None,
        max_infer_iters: int | None = None,
        client: StackClient | SyncStackClient | None = None,
        **sampling: Any,  # noqa: ANN401 (checked by content.sampling)
    ) -> None:
        self.tools: dict[str, FunctionTool] = {}
        for tool in map(FunctionTool, tools):
            if tool.name in self.tools:
                raise InvalidArgumentError(f"there are two tools called {tool.name!r}; rename one", field="tools")
            self.tools[tool.name] = tool
        self.session_id = session_id
        self.memory = [_memory(one) for one in ([memory] if isinstance(memory, str | Path | Memory) else memory)]
        self.config = v1.AgentConfig(
            model=model,
            instructions=instructions,
            input_shields=dict.fromkeys([*_names(shields), *_names(input_shields)]),
            output_shields=dict.fromkeys([*_names(shields), *_names(output_shields)]),
            toolgroups=_toolgroups(self.memory),
            client_tools=[tool.definition() for tool in self.tools.values()],
            max_infer_iters=max_infer_iters,
            sampling_params=content.sampling(**sampling),
            tool_config=v1.ToolConfig(tool_choice=tool_choice) if tool_choice else None,
        )
        self._given = client
        self._client = client if isinstance(client, StackClient) else None
        self._sync_client = client if isinstance(client, SyncStackClient) else None
        self._agent_id = ""
        self._left_turn = ""

    def run(self, message: str) -> AgentResult:
        """Ask, run the tools that the model calls, and return the answer.

        Raises:
            StackError: If the turn fails.
        """
        result = None
        for event in self.stream(message):
            result = event.result
        return _ended(result)

    def stream(self, message: str) -> SyncStream[AgentEvent]:
        """Like `run`, with everything as it happens; the last event carries the result.

        Raises:
            StackError: If the turn fails.
        """
        if self._sync_client is None:
            other = self._client
            self._sync_client = SyncStackClient(other.addresses, tls=other.tls) if other else SyncStackClient()
        return SyncStream(self._events(self._sync_client.client, message))

    async def arun(self, message: str) -> AgentResult:
        """`run` for asynchronous code.

        Raises:
            StackError: If the turn fails.
        """
        result = None
        async for event in self.astream(message):
            result = event.result
        return _ended(result)

    def astream(self, message: str) -> AsyncGenerator[AgentEvent, None]:
        """`stream` for asynchronous code.

        Raises:
            StackError: If the turn fails.
        """
        if self._client is None:
            self._client = self._sync_client.client.copy() if self._sync_client else StackClient()
        return self._events(self._client, message)

    def close(self) -> None:
        """Close the client that `run` and `stream` made; the session stays."""
        if self._sync_client is not None and self._sync_client is not self._given:
            self._sync_client.close()
            self._sync_client = None

    async def aclose(self) -> None:
        """Close the client that `arun` and `astream` made; the session stays."""
        if self._client is not None and self._client is not self._given:
            await self._client.close()
            self._client = None

    async def _events(self, client: StackClient, message: str) -> AsyncGenerator[AgentEvent, None]:
        """One turn, from the question to its end; a caller that leaves early cancels the turn."""
        await self._open(client)
        assert self.session_id is not None
        if self._left_turn:  # a stream that was left by `break`: its own end may come later than this
            await _cancel(client, self._left_turn)
        asked = v1.TurnInputMessage(user=v1.UserMessage(content=content.content(message)))
        turn = await _finish(client, client.agents.create_turn(self._agent_id, self.session_id, [asked]))
        self._left_turn = turn.turn_id
        ended, sequence = False, 0
        try:
            while not ended:
                async with client.agents.follow_turn(turn.turn_id, after_sequence=sequence) as events:
                    async for raw in events:
                        sequence = raw.sequence
                        if raw.WhichOneof("event") == "turn_awaiting_input":
                            turn = raw.turn_awaiting_input.turn
                        ended = raw.WhichOneof("event") in _ENDS
                        for event in self._translate(raw):
                            yield event
                if not ended:
                    responses = await self._respond(turn)
                    for response in responses:
                        yield AgentEvent(tool_response=response)
                    await client.agents.resume_turn(turn.turn_id, responses)
        finally:
            if not ended:
                await _cancel(client, turn.turn_id)
            if self._left_turn == turn.turn_id:
                self._left_turn = ""

    async def _open(self, client: StackClient) -> None:
        if not self._agent_id:
            for memory in self.memory:
                await memory.ensure(client)
        if self.session_id is not None and not self._agent_id:
            session = await client.agents.get_session(self.session_id)
            self._check_same((await client.agents.get(session.agent_id)).agent_config)
            self._agent_id = session.agent_id
        if not self._agent_id:
            self._agent_id = await client.agents.create(self.config)
        if self.session_id is None:
            self.session_id = await client.agents.create_session(self._agent_id)

    def _check_same(self, other: v1.AgentConfig) -> None:
        """Refuse to go on with a session of an agent that is another one: what is asked for here would not hold."""
        for member in v1.AgentConfig.DESCRIPTOR.fields:
            ours, theirs = getattr(self.config, member.name), getattr(other, member.name)
            if member.name == "client_tools":  # their descriptions may have been improved since
                ours, theirs = sorted(tool.name for tool in ours), sorted(tool.name for tool in theirs)
            if ours != theirs:
                message = (
                    f"session {self.session_id} was begun by an agent with other {member.name}; begin a new session"
                )
                raise InvalidArgumentError(message, field=member.name)

    async def _respond(self, turn: v1.Turn) -> list[v1.ToolResponse]:
        """Run the calls that wait for us, side by side; answers in the order of the calls."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._respond_to(call)) for call in turn.output_message.tool_calls]
        return [task.result() for task in tasks]

    async def _respond_to(self, call: v1.ToolCall) -> v1.ToolResponse:
        tool = self.tools.get(call.tool_name)
        if tool is None:
            known = ", ".join(self.tools) or "none"
            text = f"There is no tool {call.tool_name!r}; the tools are: {known}."
            return v1.ToolResponse(call_id=call.call_id, tool_name=call.tool_name, content=content.content(text))
        return await tool.respond(call, run=asyncio.to_thread)

    def _translate(self, raw: v1.WatchTurnResponse) -> list[AgentEvent]:
        """The events of ours that a service's event means; most mean none."""
        match raw.WhichOneof("event"):
            case "step_progress" if raw.step_progress.delta.WhichOneof("delta") == "text":
                return [AgentEvent(text=raw.step_progress.delta.text, raw=raw)]
            case "step_restarted":
                return [AgentEvent(restarted=True, raw=raw)]
            case "step_complete" if raw.step_complete.step_type == v1.STEP_TYPE_INFERENCE:
                said = raw.step_complete.step_details.inference.model_response
                return [AgentEvent(tool_call=call, raw=raw) for call in said.tool_calls]
            case "step_complete" if raw.step_complete.step_details.shield_call.HasField("violation"):
                return [AgentEvent(violation=raw.step_complete.step_details.shield_call.violation, raw=raw)]
            case "turn_complete":
                turn = raw.turn_complete.turn
                text = content.text_of(turn.output_message.content)
                return [AgentEvent(result=AgentResult(text=text, turn=turn, session_id=turn.session_id), raw=raw)]
            case "turn_failed":
                error = raw.turn_failed.turn.error
                raise from_error_message(error)
            case "turn_cancelled":
                raise CancelledError(f"turn {raw.turn_cancelled.turn.turn_id} was cancelled")
            case _:
                return []


async def _finish(client: StackClient, creating: Coroutine[Any, Any, v1.Turn]) -> v1.Turn:
    """The created turn; if we are cancelled meanwhile it is cancelled too, or it would run on and block the session."""
    task = asyncio.ensure_future(creating)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _cancel(client, (await task).turn_id)
        raise


async def _cancel(client: StackClient, turn_id: str) -> None:
    """Cancel a turn that nobody waits for any more; it may have ended by itself in between."""
    try:
        await client.agents.cancel_turn(turn_id)
    except StackError:
        return


def _memory(like: str | Path | Memory) -> Memory:
    return like if isinstance(like, Memory) else Memory(like)


def _toolgroups(memory: Sequence[Memory]) -> list[v1.AgentToolGroup]:
    if not memory:
        return []
    args = {"vector_db_ids": [one.bank for one in memory], "query_config": {"mode": "hybrid"}}
    return [v1.AgentToolGroup(name="builtin::rag", args=content.struct(args))]


def _names(shields: Sequence[str]) -> Sequence[str]:
    """Names of shields; a single one may be a plain string."""
    return [shields] if isinstance(shields, str) else shields


def _ended(result: AgentResult | None) -> AgentResult:
    if result is None:
        raise InternalError("the turn ended without a result")
    return result
