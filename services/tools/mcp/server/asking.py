"""What a tool asks of a person, put to the client, and the client's answer for the tool."""

import json
from dataclasses import dataclass
from typing import Any

import mcp_types as types
from google.protobuf import json_format
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS, is_version_at_least

from llamastack import v1
from services.tools.mcp.server.results import failed
from stack_client.content import plain

ANSWER = "answer"
"""Our name of the question."""
URL_VERSION = "2025-11-25"
"""The first revision in which a client opens addresses."""
_FORM: dict[str, Any] = {"type": "object", "properties": {}}

Context = ServerRequestContext[Any, Any]


@dataclass(frozen=True)
class Pending:
    """A call that waits for an answer, as the client carries it."""

    key: str
    """Idempotency key of the call."""
    state: str
    """Of the tool's question."""

    def dump(self) -> str:
        """As the request state; the boundary seals it."""
        return json.dumps([self.key, self.state])

    @classmethod
    def load(cls, text: str) -> "Pending":
        """Read what `dump` wrote; the boundary has proved that it is ours."""
        key, state = json.loads(text)
        return cls(key, state)


def can_ask(ctx: Context, asked: v1.ToolInputRequest) -> bool:
    """Whether the client can put a question to a person."""
    capabilities = ctx.session.client_capabilities
    if capabilities is None or capabilities.elicitation is None:
        return False
    if not asked.HasField("url"):
        return True
    return capabilities.elicitation.url is not None and is_version_at_least(ctx.protocol_version, URL_VERSION)


def cannot_ask(ctx: Context, asked: v1.ToolInputRequest) -> types.CallToolResult:
    """The end of a call that needs an answer which the client cannot get.

    Raises:
        MCPError: Without sessions, where the protocol has an error for it.
    """
    message = f"the tool needs an answer of a person, and this client cannot ask: {asked.message}"
    if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
        mode = "url" if asked.HasField("url") else "form"
        data: dict[str, Any] = {"requiredCapabilities": {"elicitation": {mode: {}}}}
        raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, message, data)
    return failed(message)


def in_a_round(asked: v1.ToolInputRequest, pending: Pending) -> types.InputRequiredResult:
    """The question as the end of this round, where there are no sessions."""
    request = types.ElicitRequest(params=_params(asked, pending))
    return types.InputRequiredResult(input_requests={ANSWER: request}, request_state=pending.dump())


async def in_the_session(ctx: Context, asked: v1.ToolInputRequest, pending: Pending) -> v1.ToolInputResponse:
    """Ask while the call is open, and wait.

    Raises:
        MCPError: If the client refuses to ask.
    """
    params = _params(asked, pending)
    if isinstance(params, types.ElicitRequestURLParams):
        identifier = params.elicitation_id or pending.key
        answer = await ctx.session.elicit_url(params.message, params.url, identifier, ctx.request_id)
    else:
        answer = await ctx.session.elicit_form(params.message, params.requested_schema, ctx.request_id)
    return response(answer, pending)


def answered(params: types.CallToolRequestParams, pending: Pending) -> v1.ToolInputResponse:
    """The answer that came with another round.

    Raises:
        MCPError: If there is none.
    """
    answer = (params.input_responses or {}).get(ANSWER)
    if not isinstance(answer, types.ElicitResult):
        raise MCPError(types.INVALID_PARAMS, f"inputResponses has no answer under {ANSWER!r}")
    return response(answer, pending)


def response(answer: types.ElicitResult, pending: Pending) -> v1.ToolInputResponse:
    """The answer for the tool."""
    given = v1.ToolInputResponse(action=answer.action, state=pending.state)
    if answer.action == "accept" and answer.content is not None:
        given.content.update(answer.content)
    return given


def _params(asked: v1.ToolInputRequest, pending: Pending) -> types.ElicitRequestParams:
    if asked.HasField("url"):
        return types.ElicitRequestURLParams(message=asked.message, url=asked.url, elicitation_id=pending.key)
    schema = plain(json_format.MessageToDict(asked.requested_schema)) if asked.HasField("requested_schema") else _FORM
    return types.ElicitRequestFormParams(message=asked.message, requested_schema=schema)
