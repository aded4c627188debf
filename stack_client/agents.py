"""`client.agents`: agents, sessions and turns as the service has them; `stack_client.Agent` makes them comfortable."""

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Self

import grpc

from llamastack import v1
from stack_client.calls import DEFAULT_TIMEOUT, EventStream, every_page, unary
from stack_client.errors import UnavailableError

REATTACH_ATTEMPTS = 8
REATTACH_SECONDS = 0.25


class Agents:
    """Calls of `AgentsService`; creating calls carry a fresh request id, so that a retry cannot do them twice."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = v1.AgentsServiceStub(channel)

    async def create(self, config: v1.AgentConfig, *, timeout: float = DEFAULT_TIMEOUT) -> str:
        """Create an agent; returns its id.

        Raises:
            StackError: If the call fails.
        """
        request = v1.CreateAgentRequest(agent_config=config, request_id=str(uuid.uuid4()))
        response: v1.CreateAgentResponse = await unary(self._stub.CreateAgent(request, timeout=timeout))
        return response.agent_id

    async def get(self, agent_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Agent:
        """One agent.

        Raises:
            NotFoundError: If there is none.
        """
        request = v1.GetAgentRequest(agent_id=agent_id)
        response: v1.GetAgentResponse = await unary(self._stub.GetAgent(request, timeout=timeout))
        return response.agent

    async def list(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[v1.Agent]:
        """All agents, newest first.

        Raises:
            StackError: If the call fails.
        """
        return await every_page(self._stub.ListAgents, v1.ListAgentsRequest(), timeout=timeout)

    async def delete(self, agent_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Delete an agent with its sessions.

        Raises:
            NotFoundError: If there is none.
        """
        await unary(self._stub.DeleteAgent(v1.DeleteAgentRequest(agent_id=agent_id), timeout=timeout))

    async def create_session(self, agent_id: str, name: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> str:
        """Create a session; returns its id.

        Raises:
            NotFoundError: If there is no such agent.
        """
        request = v1.CreateSessionRequest(agent_id=agent_id, session_name=name, request_id=str(uuid.uuid4()))
        response: v1.CreateSessionResponse = await _again(lambda: self._stub.CreateSession(request, timeout=timeout))
        return response.session_id

    async def get_session(self, session_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Session:
        """A session with its turns.

        Raises:
            NotFoundError: If there is none.
        """
        request = v1.GetSessionRequest(session_id=session_id)
        response: v1.GetSessionResponse = await unary(self._stub.GetSession(request, timeout=timeout))
        return response.session

    async def list_sessions(self, agent_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> Sequence[v1.Session]:
        """An agent's sessions, newest first, without their turns.

        Raises:
            NotFoundError: If there is no such agent.
        """
        return await every_page(self._stub.ListSessions, v1.ListSessionsRequest(agent_id=agent_id), timeout=timeout)

    async def delete_session(self, session_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Delete a session with its turns.

        Raises:
            NotFoundError: If there is none.
        """
        await unary(self._stub.DeleteSession(v1.DeleteSessionRequest(session_id=session_id), timeout=timeout))

    async def create_turn(
        self,
        agent_id: str,
        session_id: str,
        messages: Sequence[v1.TurnInputMessage],
        *,
        documents: Sequence[v1.Document] = (),
        toolgroups: Sequence[v1.AgentToolGroup] = (),
        tool_config: v1.ToolConfig | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.Turn:
        """Store a turn and start it; returns at once.

        Raises:
            FailedPreconditionError: If another turn of the session has not ended.
        """
        request = v1.CreateTurnRequest(
            agent_id=agent_id,
            session_id=session_id,
            messages=messages,
            documents=documents,
            toolgroups=toolgroups,
            tool_config=tool_config,
            request_id=str(uuid.uuid4()),
        )
        response: v1.CreateTurnResponse = await _again(lambda: self._stub.CreateTurn(request, timeout=timeout))
        return response.turn

    async def resume_turn(
        self,
        turn_id: str,
        tool_responses: Sequence[v1.ToolResponse] = (),
        *,
        decisions: Sequence[v1.ToolDecision] = (),
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.Turn:
        """Hand results of client tools and decisions to a turn that waits for them.

        Tried again when the service went away meanwhile: a repeat does nothing.

        Raises:
            FailedPreconditionError: If the turn does not wait for them.
            UnavailableError: If the service stays away.
        """
        request = v1.ResumeTurnRequest(turn_id=turn_id, tool_responses=tool_responses, decisions=decisions)
        response: v1.ResumeTurnResponse = await _again(lambda: self._stub.ResumeTurn(request, timeout=timeout))
        return response.turn

    async def get_turn(self, turn_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Turn:
        """A turn with its steps.

        Raises:
            NotFoundError: If there is none.
        """
        request = v1.GetTurnRequest(turn_id=turn_id)
        response: v1.GetTurnResponse = await unary(self._stub.GetTurn(request, timeout=timeout))
        return response.turn

    async def cancel_turn(self, turn_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Turn:
        """Ask a turn to stop.

        Raises:
            FailedPreconditionError: If it has ended.
        """
        request = v1.CancelTurnRequest(turn_id=turn_id)
        response: v1.CancelTurnResponse = await unary(self._stub.CancelTurn(request, timeout=timeout))
        return response.turn

    def watch_turn(self, turn_id: str, *, after_sequence: int = 0) -> EventStream[v1.WatchTurnResponse]:
        """A turn's events from a sequence on, over one call."""
        request = v1.WatchTurnRequest(turn_id=turn_id, resume_after_sequence=after_sequence)
        return EventStream(self._stub.WatchTurn(request))

    def follow_turn(self, turn_id: str, *, after_sequence: int = 0) -> "TurnEvents":
        """A turn's events like `watch_turn`, attached again by itself when a connection or a service goes away."""
        return TurnEvents(lambda sequence: self.watch_turn(turn_id, after_sequence=sequence), after_sequence)


async def _again(call: Callable[[], Any]) -> Any:  # noqa: ANN401 (the call's response)
    """The answer of a call whose repeat does nothing, also when the service went away meanwhile.

    Raises:
        StackError: As the service raised it.
        UnavailableError: If the service stays away.
    """
    attempts = 0
    while True:
        try:
            return await unary(call())
        except UnavailableError:
            attempts += 1
            if attempts > REATTACH_ATTEMPTS:
                raise
            await asyncio.sleep(REATTACH_SECONDS * attempts)


class TurnEvents:
    """The events of a turn, over as many calls as it takes; to be left like an `EventStream`."""

    # No generator: at the end of a program asyncio closes all generators at once, and nested ones get in their way.

    def __init__(self, watch: Callable[[int], EventStream[v1.WatchTurnResponse]], after_sequence: int) -> None:
        self._watch = watch
        self._stream = watch(after_sequence)
        self._sequence = after_sequence
        self._attempts = 0

    async def __aenter__(self) -> Self:
        """Follow the turn inside a `with` block."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop watching; the turn goes on."""
        await self.aclose()

    async def aclose(self) -> None:
        """Stop watching; the turn goes on."""
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        """The events in order."""
        return self

    async def __anext__(self) -> v1.WatchTurnResponse:
        """The next event.

        Raises:
            UnavailableError: If the service stays away.
        """
        while True:
            try:
                event = await anext(self._stream)
            except UnavailableError:
                self._attempts += 1
                if self._attempts > REATTACH_ATTEMPTS:
                    raise
                await asyncio.sleep(REATTACH_SECONDS * self._attempts)
                self._stream = self._watch(self._sequence)
                continue
            if event.WhichOneof("event") != "go_away":
                self._attempts = 0
                self._sequence = event.sequence
                return event
