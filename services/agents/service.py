"""The RPC edge of agents."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import TypeVar

import sqlalchemy as sa

from llamastack import v1
from services.agents import rows
from services.agents.agent_calls import Brought
from services.agents.attachments import beside
from services.agents.database import to_the_end
from services.agents.fork import fork_session
from services.agents.offered import choose, group_of
from services.agents.retrieval import GROUP as RETRIEVAL
from services.agents.runner import TurnRunner
from services.agents.store import AgentStore
from services.agents.toolbox import Toolbox
from services.agents.turn_log import now
from services.agents.validate import check_agent, check_turn
from services.runtime.calls import current_tenant
from services.runtime.pages import PageRequest, decode_token, encode_token, page_size
from services.runtime.stream import EventWriter, RpcContext
from stack_client.calls import terminal_events
from stack_client.errors import InvalidArgumentError, NotFoundError, UnavailableError, UnsupportedError

T = TypeVar("T")


class AgentsService(v1.AgentsServiceServicer):
    """`llamastack.v1.AgentsService`."""

    def __init__(self, store: AgentStore, runner: TurnRunner, toolbox: Toolbox, *, draining: asyncio.Event) -> None:
        self._store = store
        self._runner = runner
        self._toolbox = toolbox
        self._draining = draining

    async def CreateAgent(self, request: v1.CreateAgentRequest, context: RpcContext) -> v1.CreateAgentResponse:
        """Store an agent."""
        tenant = current_tenant()
        await self._check(request.agent_config)

        def create(connection: sa.Connection) -> v1.CreateAgentResponse:
            agent = v1.Agent(agent_id=str(uuid.uuid4()), agent_config=request.agent_config, created_at=now(), version=1)
            rows.add_agent(connection, agent, tenant=tenant)
            return v1.CreateAgentResponse(agent_id=agent.agent_id)

        return await self._store.once(request, v1.CreateAgentResponse, create, tenant=tenant)

    async def UpdateAgent(self, request: v1.UpdateAgentRequest, context: RpcContext) -> v1.UpdateAgentResponse:
        """Give an agent its next version."""
        tenant = current_tenant()
        await self._store.agent(request.agent_id, tenant=tenant)
        await self._check(request.agent_config)
        config, expected = request.agent_config, request.expected_version

        def update(connection: sa.Connection) -> v1.Agent:
            return rows.update_agent(connection, request.agent_id, config, expected=expected, tenant=tenant)

        return v1.UpdateAgentResponse(agent=await self._store.write(update))

    async def _check(self, config: v1.AgentConfig) -> None:
        """Refuse an agent that could not run; what its tools service cannot tell now is left to its turns."""
        check_agent(config)
        for index, tool in enumerate(config.agent_tools):
            try:
                await self._store.agent(tool.agent_id, tenant=current_tenant())
            except NotFoundError as error:
                field = f"agent_config.agent_tools[{index}].agent_id"
                raise InvalidArgumentError(f"{field}: {error.message}", field=field) from error
        await self._check_groups(config.toolgroups, field="agent_config.toolgroups")

    async def _check_groups(self, groups: Sequence[v1.AgentToolGroup], *, field: str) -> None:
        for index, group in enumerate(groups):
            if group.name == RETRIEVAL:
                continue
            where = f"{field}[{index}]"
            try:
                choose(group, await self._toolbox.tools(group_of(group.name)))
            except UnsupportedError as error:
                raise UnsupportedError(f"{where}: {error.message}", field=where) from error
            except NotFoundError as error:
                raise InvalidArgumentError(f"{where}: {error.message}", field=f"{where}.name") from error
            except UnavailableError:
                continue

    async def GetAgent(self, request: v1.GetAgentRequest, context: RpcContext) -> v1.GetAgentResponse:
        """Return an agent."""
        return v1.GetAgentResponse(
            agent=await self._store.agent(request.agent_id, tenant=current_tenant(), version=request.version)
        )

    async def ListAgents(self, request: v1.ListAgentsRequest, context: RpcContext) -> v1.ListAgentsResponse:
        """List agents, newest first."""
        size, before = _page(request, scope="agents")
        found = await self._store.list_agents(tenant=current_tenant(), before=before, count=size + 1)
        data, token = _cut(found, size, scope="agents")
        return v1.ListAgentsResponse(data=data, next_page_token=token)

    async def DeleteAgent(self, request: v1.DeleteAgentRequest, context: RpcContext) -> v1.DeleteAgentResponse:
        """Cancel what runs, then delete."""
        await to_the_end(self._runner.delete_agent(request.agent_id, tenant=current_tenant()))
        return v1.DeleteAgentResponse()

    async def CreateSession(self, request: v1.CreateSessionRequest, context: RpcContext) -> v1.CreateSessionResponse:
        """Store a session."""
        tenant = current_tenant()

        def create(connection: sa.Connection) -> v1.CreateSessionResponse:
            session = v1.Session(
                session_id=str(uuid.uuid4()),
                session_name=request.session_name,
                started_at=now(),
                agent_id=request.agent_id,
            )
            rows.add_session(connection, session, tenant=tenant)
            return v1.CreateSessionResponse(session_id=session.session_id)

        return await self._store.once(request, v1.CreateSessionResponse, create, tenant=tenant)

    async def GetSession(self, request: v1.GetSessionRequest, context: RpcContext) -> v1.GetSessionResponse:
        """Return a session with its turns."""
        session = await self._store.session_with_turns(request.session_id, request.agent_id, tenant=current_tenant())
        if request.turn_ids:
            wanted = set(request.turn_ids)
            missing = wanted - {turn.turn_id for turn in session.turns}
            if missing:
                raise NotFoundError(f"session {session.session_id} has no turn {min(missing)!r}")
            turns = [turn for turn in session.turns if turn.turn_id in wanted]
            del session.turns[:]
            session.turns.extend(turns)
        return v1.GetSessionResponse(session=session)

    async def ListSessions(self, request: v1.ListSessionsRequest, context: RpcContext) -> v1.ListSessionsResponse:
        """List an agent's sessions, newest first."""
        scope = f"sessions {request.agent_id}"
        size, before = _page(request, scope=scope)
        found = await self._store.list_sessions(
            request.agent_id, tenant=current_tenant(), before=before, count=size + 1
        )
        data, token = _cut(found, size, scope=scope)
        return v1.ListSessionsResponse(data=data, next_page_token=token)

    async def DeleteSession(self, request: v1.DeleteSessionRequest, context: RpcContext) -> v1.DeleteSessionResponse:
        """Cancel what runs, then delete."""
        await to_the_end(self._runner.delete_session(request.session_id, request.agent_id, tenant=current_tenant()))
        return v1.DeleteSessionResponse()

    async def ForkSession(self, request: v1.ForkSessionRequest, context: RpcContext) -> v1.ForkSessionResponse:
        """Copy a session up to a turn or step."""
        tenant = current_tenant()

        def create(connection: sa.Connection) -> v1.ForkSessionResponse:
            return v1.ForkSessionResponse(session_id=fork_session(connection, request, tenant=tenant))

        return await self._store.once(request, v1.ForkSessionResponse, create, tenant=tenant)

    async def CreateTurn(self, request: v1.CreateTurnRequest, context: RpcContext) -> v1.CreateTurnResponse:
        """Store a turn, then start it."""
        await self._check_groups(request.toolgroups, field="toolgroups")
        return await to_the_end(self._create_turn(request))  # a turn that is stored must be started too

    async def _create_turn(self, request: v1.CreateTurnRequest) -> v1.CreateTurnResponse:
        created: list[v1.Turn] = []
        turn_id, tenant = str(uuid.uuid4()), current_tenant()

        def create(connection: sa.Connection) -> v1.CreateTurnResponse:
            agent = rows.get_agent(connection, request.agent_id, tenant=tenant)
            rows.get_session(connection, request.session_id, request.agent_id, tenant=tenant)
            check_turn(request, agent.agent_config)
            turn = v1.Turn(
                turn_id=turn_id,
                session_id=request.session_id,
                input_messages=request.messages,
                started_at=now(),
                status=v1.TURN_STATUS_QUEUED,
                agent_version=agent.version,
            )
            question = next((one for one in reversed(turn.input_messages) if one.HasField("user")), None)
            if question is not None:
                question.user.content.items.extend(beside(request.documents))
            rows.add_turn(connection, turn, request, tenant=tenant, **self._runner.lease)
            created.append(turn)
            return v1.CreateTurnResponse(turn=turn)

        async with self._runner.changing(turn_id):
            response = await self._store.once(request, v1.CreateTurnResponse, create, tenant=tenant)
            for turn in created:  # a repeat by request id creates none
                self._runner.start(turn, fence=1)
        return response

    # A coroutine that writes, not a generator: `EventWriter` sends heartbeats beside it.
    async def WatchTurn(  # type: ignore[override]
        self, request: v1.WatchTurnRequest, context: RpcContext
    ) -> None:
        """Forward a turn's events until one that ends the stream."""
        writer = EventWriter(context, v1.WatchTurnResponse, draining=self._draining)
        await writer.run(self._forward(request, writer))

    async def _forward(self, request: v1.WatchTurnRequest, writer: "EventWriter[v1.WatchTurnResponse]") -> None:
        last = terminal_events(v1.WatchTurnResponse.DESCRIPTOR)
        sequence, tenant = request.resume_after_sequence, current_tenant()
        await self._store.turn_status(request.turn_id, tenant=tenant)
        while True:
            for event in await self._runner.events(request.turn_id, after=sequence, tenant=tenant):
                await writer.forward(event)
                sequence = event.sequence
                if event.WhichOneof("event") in last:
                    return

    async def ResumeTurn(self, request: v1.ResumeTurnRequest, context: RpcContext) -> v1.ResumeTurnResponse:
        """Take results of client tools and decisions of people."""
        if not request.tool_responses and not request.decisions:
            message = "tool_responses and decisions are empty; give the results or decisions that the turn waits for"
            raise InvalidArgumentError(message, reason="MISSING_FIELD", field="tool_responses")
        await self._store.turn_status(request.turn_id, tenant=current_tenant())
        brought = Brought(responses=request.tool_responses, decisions=request.decisions)
        return v1.ResumeTurnResponse(turn=await to_the_end(self._runner.resume(request.turn_id, brought)))

    async def GetTurn(self, request: v1.GetTurnRequest, context: RpcContext) -> v1.GetTurnResponse:
        """Return a turn with its steps."""
        turn = await self._store.turn(request.turn_id, tenant=current_tenant())
        if request.session_id not in {"", turn.session_id}:
            raise NotFoundError(f"session {request.session_id} has no turn {request.turn_id!r}")
        return v1.GetTurnResponse(turn=turn)

    async def ListTurns(self, request: v1.ListTurnsRequest, context: RpcContext) -> v1.ListTurnsResponse:
        """List a session's turns, oldest first."""
        scope = f"turns {request.session_id}"
        size, after = _page(request, scope=scope)
        found = await self._store.list_turns(request.session_id, tenant=current_tenant(), after=after, count=size + 1)
        data, token = _cut(found, size, scope=scope)
        return v1.ListTurnsResponse(data=data, next_page_token=token)

    async def CancelTurn(self, request: v1.CancelTurnRequest, context: RpcContext) -> v1.CancelTurnResponse:
        """End a turn."""
        await self._store.turn_status(request.turn_id, tenant=current_tenant())
        return v1.CancelTurnResponse(turn=await to_the_end(self._runner.cancel(request.turn_id)))

    async def GetStep(self, request: v1.GetStepRequest, context: RpcContext) -> v1.GetStepResponse:
        """Return a step."""
        return v1.GetStepResponse(
            step=await self._store.step(request.turn_id, request.step_id, tenant=current_tenant())
        )


def _page(request: PageRequest, *, scope: str) -> tuple[int, int]:
    """Size of a page and the number at which it goes on (0: from the beginning)."""
    return page_size(request), int(decode_token(request.page_token, scope=scope) or 0)


def _cut(found: list[tuple[int, T]], size: int, *, scope: str) -> tuple[list[T], str]:
    """A page's entries, and the token of the next page where there are more."""
    token = encode_token(str(found[size - 1][0]), scope=scope) if len(found) > size else ""
    return [entry for _, entry in found[:size]], token
