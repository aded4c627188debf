"""`Agent`: a model with instructions and tools, one call to run it.

    agent = Agent("smollm2-135m", instructions="Answer in one sentence.", tools=[get_weather])
    print(agent.run("How is the weather in Oslo?"))

    for event in agent.stream("And in Rome?"):
        print(event.text, end="", flush=True)

`run` and `stream` are for synchronous code, `arun` and `astream` for asynchronous code; all speak in one session.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamastack import v1
from stack_client import agent_settings, content
from stack_client.agent_tools import ApprovalPolicy, Approvals, Toolset
from stack_client.attachments import Attachment, documents
from stack_client.client import StackClient
from stack_client.errors import FailedPreconditionError, InternalError, InvalidArgumentError, StackError
from stack_client.knowledge import Memory
from stack_client.portal import SyncStackClient, SyncStream, portal
from stack_client.results import AgentEvent, AgentResult, Answers
from stack_client.tools import FunctionTool
from stack_client.turn_driver import TurnDriver

_ENDED = {v1.TURN_STATUS_COMPLETED, v1.TURN_STATUS_FAILED, v1.TURN_STATUS_CANCELLED}
# Names of these say whether two configurations are the same; what else they hold may have been improved, or is new
# with every program.
_BY_NAME = {"client_tools", "agent_tools"}


class Agent:
    """A model with instructions and tools.

    Nothing is sent before the first run. One agent speaks in one session; `session_id` goes on with an older one, which
    must have been begun with the same model, instructions, settings and tools.

    Args:
        model: Identifier of the model, or a `FakeModel`.
        instructions: The system message.
        tools: Python functions, names of tool groups (`"builtin::websearch"`, `"group/tool"`), `ToolGroup`, `MCP`, and
            other agents. Functions run in this program: plain ones in threads, asynchronous ones on the run's loop;
            type hints and docstring tell the model how to call them, `@tool` says more. All else runs in the stack.
        tool_choice: `auto`, `required`, `none` or the name of a tool; empty means auto.
        handoffs: Agents that may take the dialog over.
        memory: What the agent remembers: banks by name, paths and patterns of files, or `Memory` objects. They are
            brought up to date before the first run; passages that fit a question are put before the model with it.
        shields: Shields that judge what the user and the tools say before the model's answer is shown, and the answer
            before it is shown; `policy` stands for those that the stack's policy binds.
        input_shields: The same for what goes in only.
        output_shields: The same for the answer only.
        output_type: What the answer is: a pydantic model, a dataclass or another type; `result.output` holds it.
        approvals: Which calls wait for a person: `never`, `always`, `writes`, a function that looks at the call, or a
            mapping of tools to these. A function answers True, False, a reason to deny, or None for a person.
        budget: Where a run stops before its answer: `max_total_tokens`, `max_cost` with prices, `max_seconds`.
        compaction: When older history is summarised: `max_prompt_tokens`, `keep_turns`, `model`.
        name: What other agents call this one; empty is made of its place among their tools.
        description: What it is good for, for agents that may call it.
        session_id: Session to go on with; None begins a new one at the first run.
        max_infer_iters: Model calls per run at most.
        client: Says which stack, and is used where it fits: `run` and `stream` need a SyncStackClient, `arun` and
            `astream` a StackClient; the other is made when needed. None is the stack on this machine.
        sampling: temperature, top_p, top_k, max_tokens, stop, seed and penalties.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 (a name, or what has one and a client)
        *,
        instructions: str = "",
        tools: Sequence[Any] = (),
        tool_choice: str = "",
        handoffs: "Sequence[Agent]" = (),
        memory: str | Path | Memory | Sequence[str | Path | Memory] = (),
        shields: Sequence[str] = (),
        input_shields: Sequence[str] = (),
        output_shields: Sequence[str] = (),
        output_type: Any = None,  # noqa: ANN401 (any type)
        approvals: Approvals | None = None,
        budget: v1.TurnBudget | None = None,
        compaction: v1.CompactionConfig | None = None,
        name: str = "",
        description: str = "",
        session_id: str | None = None,
        max_infer_iters: int | None = None,
        client: StackClient | SyncStackClient | None = None,
        **sampling: Any,  # noqa: ANN401 (checked by content.sampling)
    ) -> None:
        self._toolset = Toolset.of(tools, Agent)
        self._handoffs = list(handoffs)
        self._approvals = ApprovalPolicy.of(approvals)
        self.session_id = session_id
        self.output_type = output_type
        self.name, self.description = name, description
        self.memory = agent_settings.memories(memory)
        self.config = v1.AgentConfig(
            model=model if isinstance(model, str) else model.model_id,
            instructions=instructions,
            name=name,
            input_shields=dict.fromkeys([*agent_settings.names(shields), *agent_settings.names(input_shields)]),
            output_shields=dict.fromkeys([*agent_settings.names(shields), *agent_settings.names(output_shields)]),
            toolgroups=[*agent_settings.retrieval(self.memory), *self._toolset.toolgroups()],
            client_tools=[tool.definition() for tool in self._toolset.functions.values()],
            max_infer_iters=max_infer_iters,
            sampling_params=content.sampling(**sampling),
            tool_config=v1.ToolConfig(tool_choice=tool_choice) if tool_choice else None,
            response_format=agent_settings.response_format(output_type),
            approvals=[*self._approvals.rules, *agent_settings.function_rules(self._toolset.functions)],
            budget=budget,
            compaction=compaction,
        )
        self._serves = None if client is not None or isinstance(model, str) else model
        self._given = client
        self._client = client if isinstance(client, StackClient) else None
        self._sync_client = client if isinstance(client, SyncStackClient) else None
        self._agent_id = ""
        self._left_turn = ""

    @property
    def tools(self) -> dict[str, FunctionTool]:
        """The functions that run in this program, also those of agents that this one may call."""
        found = dict(self._toolset.functions)
        for other in [*self._toolset.agents, *self._handoffs]:
            for name, tool in other.tools.items():
                if found.setdefault(name, tool).function is not tool.function:
                    message = f"two agents have different tools called {name!r}; rename one"
                    raise InvalidArgumentError(message, field="tools")
        return found

    def run(self, message: str | Answers, *, attachments: Sequence[Attachment] = ()) -> AgentResult:
        """Ask, run the tools that the model calls, and return the answer.

        Args:
            message: The question, or what was decided about calls that wait: `result.approve(id)`.
            attachments: Files that belong to the question: paths, addresses, or `v1.Document`.

        Raises:
            StackError: If the turn fails.
        """
        result = None
        for event in self.stream(message, attachments=attachments):
            result = event.result
        return _ended(result)

    def stream(self, message: str | Answers, *, attachments: Sequence[Attachment] = ()) -> SyncStream[AgentEvent]:
        """Like `run`, with everything as it happens; the last event carries the result.

        Raises:
            StackError: If the turn fails.
        """
        return SyncStream(self._events(self._sync().client, message, attachments))

    async def arun(self, message: str | Answers, *, attachments: Sequence[Attachment] = ()) -> AgentResult:
        """`run` for asynchronous code.

        Raises:
            StackError: If the turn fails.
        """
        result = None
        async for event in self.astream(message, attachments=attachments):
            result = event.result
        return _ended(result)

    def astream(
        self, message: str | Answers, *, attachments: Sequence[Attachment] = ()
    ) -> AsyncGenerator[AgentEvent, None]:
        """`stream` for asynchronous code.

        Raises:
            StackError: If the turn fails.
        """
        return self._events(self._async(), message, attachments)

    def start(self, message: str, *, attachments: Sequence[Attachment] = ()) -> str:
        """Ask and leave: the stack goes on by itself. Returns the turn, for `resume`.

        Functions of this program, and people, are waited for until somebody resumes.

        Raises:
            StackError: If the turn cannot be created.
        """
        return portal().run(self._start(self._sync().client, message, attachments))

    async def astart(self, message: str, *, attachments: Sequence[Attachment] = ()) -> str:
        """`start` for asynchronous code.

        Raises:
            StackError: If the turn cannot be created.
        """
        return await self._start(self._async(), message, attachments)

    def resume(self, turn_id: str = "") -> AgentResult:
        """Go on with a turn that was left, also by a program that crashed, and return its result.

        Args:
            turn_id: The turn; empty means the session's last one.

        Raises:
            FailedPreconditionError: If the session has no turns.
            StackError: If the turn fails or has failed.
        """
        result = None
        for event in SyncStream(self._attached(self._sync().client, turn_id)):
            result = event.result
        return _ended(result)

    async def aresume(self, turn_id: str = "") -> AgentResult:
        """`resume` for asynchronous code.

        Raises:
            FailedPreconditionError: If the session has no turns.
            StackError: If the turn fails or has failed.
        """
        result = None
        async for event in self.aattach(turn_id):
            result = event.result
        return _ended(result)

    def attach(self, turn_id: str = "") -> SyncStream[AgentEvent]:
        """The events of a turn from its beginning; leaving early leaves the turn alone.

        Args:
            turn_id: The turn; empty means the session's last one.

        Raises:
            FailedPreconditionError: If the session has no turns.
            StackError: If the turn fails or has failed.
        """
        return SyncStream(self._attached(self._sync().client, turn_id))

    def aattach(self, turn_id: str = "") -> AsyncGenerator[AgentEvent, None]:
        """`attach` for asynchronous code."""
        return self._attached(self._async(), turn_id)

    def chat(self) -> None:
        """Talk with the agent on the terminal until Ctrl-D; calls that wait for a person are asked about."""
        from stack_client.printing import converse  # noqa: PLC0415 (only for people)

        converse(self)

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

    def _sync(self) -> SyncStackClient:
        if self._sync_client is None:
            other = self._client
            where = self._serving()
            self._sync_client = SyncStackClient(other.addresses, tls=other.tls) if other else SyncStackClient(where)
        return self._sync_client

    def _async(self) -> StackClient:
        if self._client is None:
            where = self._serving()
            self._client = self._sync_client.client.copy() if self._sync_client else StackClient(where)
        return self._client

    def _serving(self) -> Mapping[str, str] | None:
        """The stack of a FakeModel, which then also serves those of agents that this one may call."""
        for other in [*self._toolset.agents, *self._handoffs]:
            other._serving()  # noqa: SLF001 (an agent like this one)
        where: Mapping[str, str] | None = self._serves.addresses() if self._serves else None
        return where

    async def _events(
        self, client: StackClient, message: str | Answers, attachments: Sequence[Attachment]
    ) -> AsyncGenerator[AgentEvent, None]:
        """One run, from the question to its end; a caller that leaves early cancels the turn."""
        await self._open(client)
        driver = self._driver(client)
        if isinstance(message, Answers):
            _refuse(attachments)
            turn = await client.agents.get_turn(message.turn_id)
            after = turn.last_sequence
            turn = await client.agents.resume_turn(
                message.turn_id, list(message.responses), decisions=list(message.decisions)
            )
        else:
            turn, after = await self._create(client, message, attachments), 0
        self._left_turn = turn.turn_id
        ended = False
        try:
            async for event in driver.events(turn.turn_id, after=after):
                ended = ended or event.result is not None
                yield event
            ended = True
        except StackError:
            ended = True  # the turn has failed, or cannot be reached
            raise
        finally:
            if not ended:
                await _cancel(client, turn.turn_id)
            if self._left_turn == turn.turn_id:
                self._left_turn = ""

    async def _attached(self, client: StackClient, turn_id: str) -> AsyncGenerator[AgentEvent, None]:
        await self._open(client)
        if not turn_id:
            assert self.session_id is not None
            session = await client.agents.get_session(self.session_id)
            if not session.turns:
                raise FailedPreconditionError(f"session {self.session_id} has no turns to go on with")
            turn_id = session.turns[-1].turn_id
        async for event in self._driver(client).events(turn_id, after=0, again=True):
            yield event

    def _driver(self, client: StackClient) -> TurnDriver:
        return TurnDriver(client, tools=self.tools, approvals=self._approvals, output_type=self.output_type)

    async def _start(self, client: StackClient, message: str, attachments: Sequence[Attachment]) -> str:
        await self._open(client)
        return (await self._create(client, message, attachments)).turn_id

    async def _create(self, client: StackClient, message: str, attachments: Sequence[Attachment]) -> v1.Turn:
        assert self.session_id is not None
        if self._left_turn:  # a stream that was left by `break`: its own end may come later than this
            await _cancel(client, self._left_turn)
        asked = v1.TurnInputMessage(user=v1.UserMessage(content=content.content(message)))
        files = await documents(attachments)
        creating = client.agents.create_turn(self._agent_id, self.session_id, [asked], documents=files)
        return await _finish(client, creating)

    async def _open(self, client: StackClient) -> None:
        if self._agent_id and self.session_id is not None:
            return
        for memory in self.memory:
            await memory.ensure(client)
        for server in self._toolset.servers:
            await server.ensure(client)
        if self.session_id is not None:
            session = await client.agents.get_session(self.session_id)
            self._check_same((await client.agents.get(session.agent_id)).agent_config)
            self._agent_id = session.agent_id
        if not self._agent_id:
            await self._ensure(client)
        if self.session_id is None:
            self.session_id = await client.agents.create_session(self._agent_id)

    async def _ensure(self, client: StackClient) -> str:
        """Create the agent, and before it those that it may call; returns its id."""
        if not self._agent_id:
            config = v1.AgentConfig()
            config.CopyFrom(self.config)
            for other, name, handoff in self._others():
                agent_id = await other._ensure(client)  # noqa: SLF001 (an agent like this one)
                tool = config.agent_tools.add(name=name, agent_id=agent_id, handoff=handoff)
                tool.description = other.description
            self._agent_id = await client.agents.create(config)
        return self._agent_id

    def _others(self) -> "list[tuple[Agent, str, bool]]":
        """Agents that this one may call or hand over to, with the names that its model knows."""
        found = [(other, other.name or f"agent_{place}", False) for place, other in enumerate(self._toolset.agents, 1)]
        for place, other in enumerate(self._handoffs, 1):
            found.append((other, f"transfer_to_{other.name or f'agent_{place}'}", True))
        return found

    def _check_same(self, other: v1.AgentConfig) -> None:
        """Refuse to go on with a session of an agent that is another one: what is asked for here would not hold."""
        named = {"client_tools": sorted(tool.name for tool in self.config.client_tools)}
        named["agent_tools"] = sorted(name for _, name, _ in self._others())
        for member in v1.AgentConfig.DESCRIPTOR.fields:
            ours, theirs = getattr(self.config, member.name), getattr(other, member.name)
            if member.name in _BY_NAME:
                ours, theirs = named[member.name], sorted(tool.name for tool in theirs)
            if ours != theirs:
                message = (
                    f"session {self.session_id} was begun by an agent with other {member.name}; begin a new session"
                )
                raise InvalidArgumentError(message, field=member.name)


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


def _refuse(attachments: Sequence[Attachment]) -> None:
    if attachments:
        raise InvalidArgumentError("attachments belong to a question, not to decisions", field="attachments")


def _ended(result: AgentResult | None) -> AgentResult:
    if result is None:
        raise InternalError("the turn ended without a result")
    return result
