"""Agents, their sessions, turns and steps."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from llamastack import v1
from services.gateway import sse
from services.gateway.edge import Edge
from services.gateway.request import EmptyReply, JsonReply, Reply, Request, StreamReply
from services.gateway.routes.inference import with_tool_config
from services.gateway.routing import ALPHA, Route, Row, table
from services.gateway.upstream import Rpc
from stack_client.errors import CancelledError, InvalidArgumentError, StackError, from_error_message

CREATE_AGENT = Rpc("AgentsService.CreateAgent")
CREATE_TURN, RESUME_TURN = Rpc("AgentsService.CreateTurn"), Rpc("AgentsService.ResumeTurn")
GET_TURN, GET_SESSION = Rpc("AgentsService.GetTurn"), Rpc("AgentsService.GetSession")
GET_STEP = Rpc("AgentsService.GetStep")
WATCH, CANCEL = Rpc("AgentsService.WatchTurn"), Rpc("AgentsService.CancelTurn")
_WAITING = (v1.TURN_STATUS_AWAITING_INPUT, v1.TURN_STATUS_NEEDS_ATTENTION)
_SESSION = "/agents/{agent_id}/session/{session_id}"
_PAGES = {"start_index": {"type": "integer", "minimum": 0}, "limit": {"type": "integer", "minimum": -1}}


def routes(edge: Edge) -> list[Route]:
    """The rows."""
    turns = Turns(edge)

    async def create_agent(request: Request) -> Reply:
        body = request.json()
        config = body.get("agent_config")
        if isinstance(config, dict):
            body = {**body, "agent_config": with_tool_config(config)}
        message = edge.fill(CREATE_AGENT, body, request, strict=False)
        response = await edge.upstream.unary(CREATE_AGENT, message, request=request)
        return JsonReply(value={"agent_id": response.agent_id})

    async def show_session(request: Request) -> Reply:
        message = edge.read(GET_SESSION, request)
        response = await edge.upstream.unary(GET_SESSION, message, request=request)
        return JsonReply(value=edge.encode(response.session))

    rows: list[Row] = [
        ("POST", "/agents", create_agent, "Make an agent", {"request": v1.CreateAgentRequest,
                                                            "response": v1.CreateAgentResponse}),
        ("GET", "/agents", edge.paged("AgentsService.ListAgents", path="/v1/agents"), "List agents", {"query": _PAGES}),
        ("GET", "/agents/{agent_id}", edge.unary("AgentsService.GetAgent", edge.member("agent")), "Show an agent",
         {"response": v1.Agent}),
        ("DELETE", "/agents/{agent_id}", edge.unary("AgentsService.DeleteAgent", edge.nothing),
         "Delete an agent with its sessions", {}),
        ("POST", "/agents/{agent_id}/session", edge.unary("AgentsService.CreateSession", edge.whole),
         "Begin a session", {"request": v1.CreateSessionRequest, "response": v1.CreateSessionResponse}),
        ("GET", "/agents/{agent_id}/sessions",
         edge.paged("AgentsService.ListSessions", path="/v1/agents/{agent_id}/sessions"), "List sessions",
         {"query": _PAGES}),
        ("GET", _SESSION, show_session, "Show a session with its turns",
         {"response": v1.Session, "query": {"turn_ids": {"type": "array", "items": {"type": "string"}}}}),
        ("DELETE", _SESSION, edge.unary("AgentsService.DeleteSession", edge.nothing), "Delete a session", {}),
        ("POST", f"{_SESSION}/turn", turns.create, "Run a turn",
         {"request": v1.CreateTurnRequest, "response": v1.Turn, "streams": True}),
        ("GET", _SESSION + "/turn/{turn_id}", turns.show, "Show a turn", {"response": v1.Turn}),
        ("POST", _SESSION + "/turn/{turn_id}/resume", turns.resume, "Go on with a turn that waits",
         {"request": v1.ResumeTurnRequest, "response": v1.Turn, "streams": True}),
        ("POST", _SESSION + "/turn/{turn_id}/cancel", turns.cancel, "Cancel a turn", {}),
        ("GET", _SESSION + "/turn/{turn_id}/step/{step_id}", turns.step, "Show a step",
         {"response": v1.GetStepResponse}),
    ]  # fmt: skip
    return table(rows, api="agents", scope="agents", mounts=ALPHA)


class Turns:
    """Turns: made, gone on with, watched.

    Args:
        edge: Channels and codec.
    """

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def create(self, request: Request) -> Reply:
        """Run a turn to its end, or to where it waits."""
        body, wants_stream = _stream_wanted(request.json())
        given = {**with_tool_config(body), **request.params}
        message = self._edge.fill(CREATE_TURN, given, request, strict=False)
        response = await self._edge.upstream.unary(CREATE_TURN, message, request=request)
        return await self._watched(response.turn.turn_id, 0, request, wants_stream=wants_stream)

    async def resume(self, request: Request) -> Reply:
        """Hand in what a turn waits for, and run it on."""
        body, wants_stream = _stream_wanted(request.json())
        turn = await self._turn(request)
        responses = body.get("tool_responses")
        if turn.status == v1.TURN_STATUS_COMPLETED and responses and not _answered(turn, responses):
            return await self._continued(responses, request, wants_stream=wants_stream)
        message = self._edge.fill(RESUME_TURN, {**body, "turn_id": turn.turn_id}, request, strict=False)
        await self._edge.upstream.unary(RESUME_TURN, message, request=request)
        # A repeat of what was handed in before does nothing; it gets the end that there is.
        after = turn.last_sequence - (turn.status not in _WAITING)
        return await self._watched(turn.turn_id, after, request, wants_stream=wants_stream)

    async def _continued(self, responses: Any, request: Request, *, wants_stream: bool) -> Reply:  # noqa: ANN401
        """Results for a turn that has ended: clients of 0.2 that read calls out of text, as its ReAct agent does.

        They begin a turn of their own, since the one that ended stays as it is.
        """
        ids = {key: request.params[key] for key in ("agent_id", "session_id")}
        if not isinstance(responses, list) or not all(isinstance(one, dict) for one in responses):
            raise InvalidArgumentError("tool_responses: expected a list of objects", field="tool_responses")
        known = ("call_id", "tool_name", "content")
        messages = [{"role": "tool", **{key: one.get(key) for key in known}} for one in responses]
        message = self._edge.fill(CREATE_TURN, {**ids, "messages": messages}, request, strict=False)
        response = await self._edge.upstream.unary(CREATE_TURN, message, request=request)
        return await self._watched(response.turn.turn_id, 0, request, wants_stream=wants_stream)

    async def show(self, request: Request) -> Reply:
        """A turn as it is now."""
        return JsonReply(value=self._edge.encode(await self._turn(request)))

    async def cancel(self, request: Request) -> Reply:
        """End a turn that runs or waits."""
        turn = await self._turn(request)
        await self._edge.upstream.unary(CANCEL, v1.CancelTurnRequest(turn_id=turn.turn_id), request=request)
        return EmptyReply()

    async def step(self, request: Request) -> Reply:
        """A step of a turn."""
        turn = await self._turn(request)
        message = v1.GetStepRequest(turn_id=turn.turn_id, step_id=request.params["step_id"])
        response = await self._edge.upstream.unary(GET_STEP, message, request=request)
        return JsonReply(value={"step": self._edge.encode(response.step)})

    async def _turn(self, request: Request) -> v1.Turn:
        params = request.params
        message = v1.GetTurnRequest(turn_id=params["turn_id"], session_id=params["session_id"])
        response: v1.GetTurnResponse = await self._edge.upstream.unary(GET_TURN, message, request=request)
        return response.turn

    async def _watched(self, turn_id: str, after: int, request: Request, *, wants_stream: bool) -> Reply:
        pieces = self._events(turn_id, after, request)
        if wants_stream:
            return StreamReply(pieces=self._written(pieces, request))
        last: Any = None
        try:
            async for event in pieces:
                last = event
        finally:
            await pieces.aclose()
        kind = last.WhichOneof("event")
        turn = getattr(last, kind).turn
        if kind in {"turn_failed", "turn_cancelled"}:
            raise _failure(kind, turn)
        request.tokens += turn.usage.total_tokens
        return JsonReply(value=self._edge.encode(turn))

    async def _events(self, turn_id: str, after: int, request: Request) -> AsyncGenerator[Any, None]:
        """The events of a turn up to where it ends or waits; leaving before cancels the turn."""
        message = v1.WatchTurnRequest(turn_id=turn_id, resume_after_sequence=after)
        ended = False
        try:
            async with self._edge.upstream.stream(WATCH, message, request=request) as events:
                async for event in events:
                    ended = events.ended
                    yield event
        except StackError:
            ended = True  # the turn goes on by itself, or failed by itself
            raise
        finally:
            if not ended:
                await self._edge.upstream.afterwards(CANCEL, v1.CancelTurnRequest(turn_id=turn_id), request=request)

    async def _written(self, events: AsyncGenerator[Any, None], request: Request) -> AsyncIterator[bytes]:
        begun = False
        try:
            async for event in events:
                kind = event.WhichOneof("event")
                if kind == "heartbeat":
                    yield sse.HEARTBEAT
                elif kind in {"turn_failed", "turn_cancelled"}:
                    yield sse.failure(_failure(kind, getattr(event, kind).turn))
                elif (payload := self._payload(event, kind)) is not None:
                    if kind == "turn_complete":
                        request.tokens += event.turn_complete.turn.usage.total_tokens
                    begun = True
                    yield sse.data({"event": {"payload": payload}})
        except StackError as error:
            if not begun:
                raise
            yield sse.failure(error)
        finally:
            await events.aclose()

    def _payload(self, event: Any, kind: str) -> dict[str, Any] | None:  # noqa: ANN401
        """An event as clients of 0.2 read it; None for what only our own stream has."""
        if kind == "go_away":
            return None
        if kind == "step_progress" and not event.step_progress.HasField("delta"):
            return None
        written = dict(self._edge.encode(getattr(event, kind)))
        written.pop("tool_progress", None)
        return {"event_type": kind, **written}


def _answered(turn: v1.Turn, responses: Any) -> bool:  # noqa: ANN401
    """Whether results are of calls that the model made in a turn, and not of calls that a client read out of text."""
    if not isinstance(responses, list):
        return False
    made = {call.call_id for step in turn.steps for call in step.inference.model_response.tool_calls}
    return any(isinstance(one, dict) and one.get("call_id") in made for one in responses)


def _stream_wanted(body: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    given = dict(body)
    wanted = given.pop("stream", None)
    if wanted is not None and not isinstance(wanted, bool):
        raise InvalidArgumentError("stream: expected true or false", field="stream")
    return given, bool(wanted)


def _failure(kind: str, turn: v1.Turn) -> StackError:
    """Why a turn has no answer."""
    if kind == "turn_cancelled":
        return CancelledError(f"turn {turn.turn_id} was cancelled")
    return from_error_message(turn.error)
