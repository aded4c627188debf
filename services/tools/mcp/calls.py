"""Running a call: on a session that waits for answers, or without one in rounds."""

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

import mcp_types as types
from pydantic import ValidationError

from llamastack import v1
from services.tools.mcp import content, questions
from services.tools.mcp.connection import Connection, Request
from services.tools.mcp.endpoint import Endpoint
from services.tools.mcp.exchange import ConnectionLostError, Exchange, Question, ServerError
from services.tools.mcp.pool import Pool
from services.tools.mcp.requests import Outcome, request_of
from services.tools.provider import Call
from stack_client.errors import UnavailableError

ROUNDS = 10  # of a server that says `input_required` but asks nothing
PAUSE_SECONDS = 0.1  # before its next round


@dataclass
class _Waiting:
    """A call in a session, whose question a person has."""

    request: "Request[Outcome]"
    connection: Connection
    question: Question
    tool: str


class Calls:
    """Runs calls.

    Args:
        pool: The connections.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting: dict[str, _Waiting] = {}

    @property
    def waiting(self) -> int:
        """Calls in sessions that wait for a person."""
        return len(self._waiting)

    async def run(self, call: Call, endpoint: Endpoint) -> v1.ToolInvocationResult:
        """Run a call.

        Raises:
            StackError: If the server cannot be reached, so that nothing happened, or the answer to a question is none.
        """
        state: questions.Round | questions.Held = questions.Round()
        if call.input_response is not None:
            state = questions.load(call.input_response.state)
            answered = questions.answer(call.input_response)
            if isinstance(state, questions.Round) and not state.pending and answered.action != "accept":
                # Nothing waits for this answer: an address was to be opened, after which the call is made anew.
                return content.failure(f"a person was asked to open an address and chose to {answered.action}")
        try:
            if isinstance(state, questions.Held):
                return await self._go_on(call, endpoint, state, answered)
            if state.pending:
                state.settle(answered)
            return _ask(state) if state.pending else await self._rounds(call, endpoint, state)
        except ServerError as error:
            return _server_error(error)
        except ValidationError as error:
            return content.failure(f"the server's answer does not follow the protocol: {error.errors()[0]['msg']}")
        except RuntimeError as error:  # the SDK: structured content that breaks the tool's own schema
            return content.failure(str(error))

    async def _rounds(self, call: Call, endpoint: Endpoint, round_: questions.Round) -> v1.ToolInvocationResult:
        for _ in range(ROUNDS):
            outcome = await self._start(call, endpoint, round_)
            if isinstance(outcome, v1.ToolInvocationResult):
                return outcome
            round_ = questions.Round(request_state=outcome.request_state)
            for key, asked in (outcome.input_requests or {}).items():
                if not isinstance(asked, types.ElicitRequest):
                    return content.failure(f"the server wants {asked.method}, which is not offered to it")
                round_.pending[key] = questions.unparsed(asked.params)
            if round_.pending:
                return _ask(round_)
            await asyncio.sleep(PAUSE_SECONDS)
        return content.failure(f"the server asked for another attempt {ROUNDS} times without asking a question")

    async def _start(self, call: Call, endpoint: Endpoint, round_: questions.Round) -> Outcome:
        """Send the call; again on a new connection if the old one was gone before."""
        work = request_of(call, round_)
        for attempt in (1, 2):
            connection = await self._pool.connection(endpoint)
            exchange = Exchange(report=call.report)
            request: Request[Outcome] | None = None
            try:
                request = connection.start(work, exchange)
                return await self._finish(call, connection, request)
            except ConnectionLostError as error:
                await self._pool.drop(connection)
                if error.sent:
                    return _unknown(endpoint, error)
                if attempt == 2:
                    message = f"{endpoint.label}: the MCP server cannot be reached: {error.reason}"
                    raise UnavailableError(message) from error
        raise AssertionError("unreachable")

    async def _finish(self, call: Call, connection: Connection, request: "Request[Outcome]") -> Outcome:
        """Wait for the result or for a question, whatever comes first; a caller that leaves cancels the call."""
        asked = asyncio.ensure_future(request.exchange.questions.get())
        try:
            waited: set[asyncio.Future[Any]] = {request.done, asked}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await request.cancel()
            raise
        finally:
            if not asked.done():
                asked.cancel()
        if request.done.done():
            return request.done.result()
        token = secrets.token_urlsafe(24)
        question = asked.result()
        self._waiting[token] = _Waiting(request, connection, question, call.tool.name)
        request.done.add_done_callback(lambda _: self._waiting.pop(token, None))
        question.answer.add_done_callback(lambda _: self._waiting.pop(token, None))
        return questions.question(question.request, questions.Held(token).dump())

    async def _go_on(
        self, call: Call, endpoint: Endpoint, held: questions.Held, answered: types.ElicitResult
    ) -> v1.ToolInvocationResult:
        waiting = self._waiting.get(held.token)
        if (
            waiting is None
            or waiting.question.answer.done()
            or waiting.connection.endpoint.tenant != endpoint.tenant
            or (waiting.connection.endpoint.uri, waiting.tool) != (endpoint.uri, call.tool.name)
        ):
            return content.failure(
                "the server waits no more for this answer: its session ended or the time was over; call the tool again"
            )
        del self._waiting[held.token]
        waiting.request.exchange.report = call.report
        waiting.question.answer.set_result(answered)
        try:
            outcome = await self._finish(call, waiting.connection, waiting.request)
        except ConnectionLostError as error:
            await self._pool.drop(waiting.connection)
            return _unknown(endpoint, error)
        assert isinstance(outcome, v1.ToolInvocationResult)  # sessions have no rounds
        return outcome


def _ask(round_: questions.Round) -> v1.ToolInvocationResult:
    return questions.question(questions.parse(next(iter(round_.pending.values()))), round_.dump())


def _unknown(endpoint: Endpoint, error: ConnectionLostError) -> v1.ToolInvocationResult:
    return content.failure(
        f"the connection to {endpoint.label} broke while the tool ran ({error.reason}): "
        "whether it took effect is not known",
        {"outcome": "unknown"},
    )


def _server_error(error: ServerError) -> v1.ToolInvocationResult:
    """An error of the protocol as the tool's; one that asks a person to open an address is a question."""
    if error.code == types.URL_ELICITATION_REQUIRED:
        try:
            asked = types.ElicitationRequiredErrorData.model_validate(error.data).elicitations
        except ValidationError:
            asked = []
        if asked:
            # Nothing is sent back but the call itself: the server knows by then what the person did there.
            return questions.question(asked[0], questions.Round().dump())
    if error.code == types.REQUEST_TIMEOUT:
        return content.failure("the server gave no answer in time; whether the tool took effect is not known")
    return content.failure(error.message or "the server refuses the call", {content.ERROR: error.code})
