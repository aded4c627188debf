"""The RPC edge of agents."""

import asyncio
import uuid

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.agents.runner import TurnRunner
from services.agents.store import AgentStore
from services.agents.validate import check_agent, check_turn
from services.runtime.pages import PageRequest, decode_token, encode_token, page_size
from services.runtime.stream import EventWriter, RpcContext
from stack_client.calls import terminal_events
from stack_client.errors import NotFoundError


class AgentsService(v1.AgentsServiceServicer):
    """`llamastack.v1.AgentsService`."""

    def __init__(self, store: AgentStore, runner: TurnRunner, *, draining: asyncio.Event) -> None:
        self._store = store
        self._runner = runner
        self._draining = draining

    async def CreateAgent(self, request: v1.CreateAgentRequest, context: RpcContext) -> v1.CreateAgentResponse:
        """Store an agent."""
        check_agent(request.agent_config)

        async def create(connection: AsyncConnection) -> v1.CreateAgentResponse:
            agent = v1.Agent(agent_id=str(uuid.uuid4()), agent_config=request.agent_config, created_at=_now())
            await self._store.add_agent(connection, agent)
            return v1.CreateAgentResponse(agent_id=agent.agent_id)

        return await self._store.once(request, v1.CreateAgentResponse, create)

    async def GetAgent(self, request: v1.GetAgentRequest, context: RpcContext) -> v1.GetAgentResponse:
        """Return an agent."""
        return v1.GetAgentResponse(agent=await self._store.agent(request.agent_id))

    async def ListAgents(self, request: v1.ListAgentsRequest, context: RpcContext) -> v1.ListAgentsResponse:
        """List agents, newest first."""
        size, before = _page(request, scope="agents")
        rows = await self._store.list_agents(before=before, count=size + 1)
        return v1.ListAgentsResponse(
            data=[agent for _, agent in rows[:size]],
            next_page_token=_next_token([number for number, _ in rows], size, scope="agents"),
        )

    async def DeleteAgent(self, request: v1.DeleteAgentRequest, context: RpcContext) -> v1.DeleteAgentResponse:
        """Cancel what runs, then delete."""
        for session_id in await self._store.session_ids(request.agent_id):
            await self._runner.forget(session_id)
        await self._store.delete_agent(request.agent_id)
        return v1.DeleteAgentResponse()

    async def CreateSession(self, request: v1.CreateSessionRequest, context: RpcContext) -> v1.CreateSessionResponse:
        """Store a session."""
        await self._store.agent(request.agent_id)

        async def create(connection: AsyncConnection) -> v1.CreateSessionResponse:
            session = v1.Session(
                session_id=str(uuid.uuid4()),
                session_name=request.session_name,
                started_at=_now(),
                agent_id=request.agent_id,
            )
            await self._store.add_session(connection, session)
            return v1.CreateSessionResponse(session_id=session.session_id)

        return await self._store.once(request, v1.CreateSessionResponse, create)

    async def GetSession(self, request: v1.GetSessionRequest, context: RpcContext) -> v1.GetSessionResponse:
        """Return a session with its turns."""
        session = await self._session(request.session_id, request.agent_id)
        turns = [turn for _, turn in await self._store.list_turns(session.session_id)]
        if request.turn_ids:
            by_id = {turn.turn_id: turn for turn in turns}
            missing = [turn_id for turn_id in request.turn_ids if turn_id not in by_id]
            if missing:
                raise NotFoundError(f"session {session.session_id} has no turn {missing[0]!r}")
            turns = [turn for turn in turns if turn.turn_id in set(request.turn_ids)]
        session.turns.extend(turns)
        return v1.GetSessionResponse(session=session)

    async def ListSessions(self, request: v1.ListSessionsRequest, context: RpcContext) -> v1.ListSessionsResponse:
        """List an agent's sessions, newest first."""
        await self._store.agent(request.agent_id)
        scope = f"sessions {request.agent_id}"
        size, before = _page(request, scope=scope)
        rows = await self._store.list_sessions(request.agent_id, before=before, count=size + 1)
        return v1.ListSessionsResponse(
            data=[session for _, session in rows[:size]],
            next_page_token=_next_token([number for number, _ in rows], size, scope=scope),
        )

    async def DeleteSession(self, request: v1.DeleteSessionRequest, context: RpcContext) -> v1.DeleteSessionResponse:
        """Cancel what runs, then delete."""
        session = await self._session(request.session_id, request.agent_id)
        await self._runner.forget(session.session_id)
        await self._store.delete_session(session.session_id)
        return v1.DeleteSessionResponse()

    async def ForkSession(self, request: v1.ForkSessionRequest, context: RpcContext) -> v1.ForkSessionResponse:
        """Copy a session up to a turn or step."""
        session = await self._store.session(request.session_id)
        turns = [turn for _, turn in await self._store.list_turns(session.session_id)]
        copied = _up_to(turns, request)
        requests = {turn.turn_id: await self._store.turn_request(turn.turn_id) for turn in copied}

        async def create(connection: AsyncConnection) -> v1.ForkSessionResponse:
            fork = v1.Session(
                session_id=str(uuid.uuid4()),
                session_name=request.session_name or session.session_name,
                started_at=_now(),
                agent_id=session.agent_id,
            )
            await self._store.add_session(connection, fork)
            for turn in copied:
                original = requests[turn.turn_id]
                turn.turn_id, turn.session_id, turn.last_sequence = str(uuid.uuid4()), fork.session_id, 0
                for step in turn.steps:
                    step.turn_id = turn.turn_id
                steps = list(turn.steps)
                turn.ClearField("steps")
                await self._store.add_turn(connection, turn, original, copied=steps)
            return v1.ForkSessionResponse(session_id=fork.session_id)

        return await self._store.once(request, v1.ForkSessionResponse, create)

    async def CreateTurn(self, request: v1.CreateTurnRequest, context: RpcContext) -> v1.CreateTurnResponse:
        """Store a turn, then start it."""
        agent = await self._store.agent(request.agent_id)
        await self._session(request.session_id, request.agent_id)
        check_turn(request, agent.agent_config)
        created: list[v1.Turn] = []

        async def create(connection: AsyncConnection) -> v1.CreateTurnResponse:
            turn = v1.Turn(
                turn_id=str(uuid.uuid4()),
                session_id=request.session_id,
                input_messages=request.messages,
                started_at=_now(),
                status=v1.TURN_STATUS_QUEUED,
            )
            await self._store.add_turn(connection, turn, request)
            created.append(turn)
            return v1.CreateTurnResponse(turn=turn)

        response = await self._store.once(request, v1.CreateTurnResponse, create)
        for turn in created:  # a repeat by request id creates none
            self._runner.start(turn)
        return response

    # A coroutine that writes, not a generator: `EventWriter` sends heartbeats beside it.
    async def WatchTurn(  # type: ignore[override]
        self, request: v1.WatchTurnRequest, context: RpcContext
    ) -> None:
        """Forward a turn's events until one that ends the stream."""
        await self._store.turn(request.turn_id)
        writer = EventWriter(context, v1.WatchTurnResponse, draining=self._draining)
        last = terminal_events(v1.WatchTurnResponse.DESCRIPTOR)
        keeper = asyncio.ensure_future(writer.keep_alive())
        try:
            sequence = request.resume_after_sequence
            while True:
                for event in await self._runner.events(request.turn_id, after=sequence):
                    await writer.forward(event)
                    sequence = event.sequence
                    if event.WhichOneof("event") in last:
                        return
        finally:
            keeper.cancel()

    async def ResumeTurn(self, request: v1.ResumeTurnRequest, context: RpcContext) -> v1.ResumeTurnResponse:
        """Take results of client tools."""
        return v1.ResumeTurnResponse(turn=await self._runner.resume(request.turn_id, request.tool_responses))

    async def GetTurn(self, request: v1.GetTurnRequest, context: RpcContext) -> v1.GetTurnResponse:
        """Return a turn with its steps."""
        turn = await self._store.turn(request.turn_id)
        if request.session_id not in {"", turn.session_id}:
            raise NotFoundError(f"session {request.session_id} has no turn {request.turn_id!r}")
        return v1.GetTurnResponse(turn=turn)

    async def ListTurns(self, request: v1.ListTurnsRequest, context: RpcContext) -> v1.ListTurnsResponse:
        """List a session's turns, oldest first."""
        await self._store.session(request.session_id)
        scope = f"turns {request.session_id}"
        size, after = _page(request, scope=scope)
        rows = await self._store.list_turns(request.session_id, after=after, count=size + 1)
        return v1.ListTurnsResponse(
            data=[turn for _, turn in rows[:size]],
            next_page_token=_next_token([number for number, _ in rows], size, scope=scope),
        )

    async def CancelTurn(self, request: v1.CancelTurnRequest, context: RpcContext) -> v1.CancelTurnResponse:
        """End a turn."""
        return v1.CancelTurnResponse(turn=await self._runner.cancel(request.turn_id))

    async def GetStep(self, request: v1.GetStepRequest, context: RpcContext) -> v1.GetStepResponse:
        """Return a step."""
        return v1.GetStepResponse(step=await self._store.step(request.turn_id, request.step_id))

    async def _session(self, session_id: str, agent_id: str) -> v1.Session:
        session = await self._store.session(session_id)
        if agent_id not in {"", session.agent_id}:
            raise NotFoundError(f"agent {agent_id} has no session {session_id!r}")
        return session


def _up_to(turns: list[v1.Turn], request: v1.ForkSessionRequest) -> list[v1.Turn]:
    """The ended turns of a session up to the turn and step that a fork names."""
    if not request.at_turn_id:
        return [turn for turn in turns if turn.HasField("completed_at")]
    for place, turn in enumerate(turns):
        if turn.turn_id != request.at_turn_id:
            continue
        if request.at_step_id:
            ids = [step.step_id for step in turn.steps]
            if request.at_step_id not in ids:
                raise NotFoundError(f"turn {turn.turn_id} has no step {request.at_step_id!r}")
            del turn.steps[ids.index(request.at_step_id) + 1 :]
        # A copy does not run: a turn that is cut, or was still running, is over in the fork.
        if request.at_step_id or not turn.HasField("completed_at"):
            turn.status = v1.TURN_STATUS_CANCELLED
            turn.completed_at.CopyFrom(_now())
        return turns[: place + 1]
    raise NotFoundError(f"session {request.session_id} has no turn {request.at_turn_id!r}")


def _page(request: PageRequest, *, scope: str) -> tuple[int, int]:
    """Size of a page and the number at which it goes on (0: from the beginning)."""
    return page_size(request), int(decode_token(request.page_token, scope=scope) or 0)


def _next_token(numbers: list[int], size: int, *, scope: str) -> str:
    return encode_token(str(numbers[size - 1]), scope=scope) if len(numbers) > size else ""


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
