"""Responses: created, streamed, fetched, cancelled, listed."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from llamastack import v1
from services.gateway import sse
from services.gateway.edge import Edge, coerced
from services.gateway.jsonmap.values import wrong
from services.gateway.request import JsonReply, Reply, Request, StreamReply
from services.gateway.routes.fields import FieldReader
from services.gateway.routes.pages import page_query, paged_list
from services.gateway.routing import OPENAI, Route, Row, table
from services.gateway.upstream import Events, Rpc
from stack_client.errors import InvalidArgumentError, StackError

CREATE, STREAM = Rpc("ResponsesService.CreateResponse"), Rpc("ResponsesService.StreamCreateResponse")
GET, WATCH = Rpc("ResponsesService.GetResponse"), Rpc("ResponsesService.WatchResponse")
LIST, INPUTS = Rpc("ResponsesService.ListResponses"), Rpc("ResponsesService.ListResponseInputItems")
COMPACT = Rpc("ResponsesService.CompactResponse")
_EVENTS = {
    name: f"response.{place}.{tail}"
    for place, names in {
        "output_item": ("output_item_added", "output_item_done"),
        "content_part": ("content_part_added", "content_part_done"),
        "output_text": ("output_text_delta", "output_text_done"),
        "output_text.annotation": ("output_text_annotation_added",),
        "refusal": ("refusal_delta", "refusal_done"),
        "reasoning_text": ("reasoning_text_delta", "reasoning_text_done"),
        "reasoning_summary_part": ("reasoning_summary_part_added", "reasoning_summary_part_done"),
        "reasoning_summary_text": ("reasoning_summary_text_delta", "reasoning_summary_text_done"),
        "function_call_arguments": ("function_call_arguments_delta", "function_call_arguments_done"),
        "mcp_call_arguments": ("mcp_call_arguments_delta", "mcp_call_arguments_done"),
        "web_search_call": ("web_search_call_in_progress", "web_search_call_searching", "web_search_call_completed"),
        "file_search_call": (
            "file_search_call_in_progress", "file_search_call_searching", "file_search_call_completed",
        ),
        "mcp_list_tools": ("mcp_list_tools_in_progress", "mcp_list_tools_failed", "mcp_list_tools_completed"),
        "mcp_call": ("mcp_call_in_progress", "mcp_call_failed", "mcp_call_completed"),
    }.items()
    for name in names
    for tail in [name.removeprefix(place.replace(".", "_") + "_")]
}  # fmt: skip
_WHOLE = {"created", "queued", "in_progress"}
_ENDS = {"completed": "completed", "incomplete": "incomplete", "failed": "failed", "cancelled": "incomplete"}
_INCLUDE = {"include": {"type": "array", "items": {"type": "string"}}}


def routes(edge: Edge) -> list[Route]:
    """The rows."""
    edge_responses = Responses(edge)
    one = {"response": v1.ResponseObject}
    rows: list[Row] = [
        ("POST", "/responses", edge_responses.create, "Make a response",
         {"request": v1.CreateResponseRequest, "streams": True, **one}),
        ("GET", "/responses", edge_responses.listed, "List stored responses",
         {"query": page_query("model", most=100, default=50)}),
        ("POST", "/responses/compact", edge_responses.compact,
         "Make a long dialog short", {"request": v1.CompactResponseRequest, "response": v1.CompactResponseResponse}),
        ("GET", "/responses/{response_id}", edge_responses.show, "Show a response, or watch it",
         {"query": {**_INCLUDE, "stream": {"type": "boolean"}, "starting_after": {"type": "integer", "minimum": 0}},
          **one}),
        ("DELETE", "/responses/{response_id}", edge_responses.delete, "Delete a response", {}),
        ("POST", "/responses/{response_id}/cancel", edge_responses.cancel, "Cancel a background response", one),
        ("GET", "/responses/{response_id}/input_items", edge_responses.inputs, "List what a response was asked",
         {"query": {**page_query(most=100, default=20), **_INCLUDE}}),
    ]  # fmt: skip
    return table(rows, api="agents", scope="agents", mounts=OPENAI)


class Responses:
    """The handlers.

    Args:
        edge: Channels and codec.
    """

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def create(self, request: Request) -> Reply:
        """Make a response."""
        body = request_body(request.json())
        wants_stream = body.pop("stream", None)
        options = body.pop("stream_options", None)
        if wants_stream is not None and not isinstance(wants_stream, bool):
            raise InvalidArgumentError("stream: expected true or false", field="stream")
        take_secrets(body, request)
        message = self._edge.fill(CREATE, body, request, strict=True)
        # A client that hangs up wants no more, unless it brought a key to come back with.
        message.cancel_on_disconnect = not message.request_id
        if not wants_stream:
            response = await self._edge.upstream.unary(CREATE, message, request=request)
            request.tokens += response.response.usage.total_tokens
            return JsonReply(value=response_json(self._edge, response.response, request))
        _check_options(options)
        wrapped = v1.StreamCreateResponseRequest(request=message)
        events = self._edge.upstream.stream(STREAM, wrapped, request=request)
        return StreamReply(pieces=self._pieces(events, request))

    async def show(self, request: Request) -> Reply:
        """A response as it stands, or its events from one on."""
        query = request.query()
        given = coerced({"response_id": request.params["response_id"], **_included(query)}, GET.request.DESCRIPTOR)
        if str(query.get("stream", "")).lower() not in {"true", "1"}:
            response = await self._edge.upstream.unary(
                GET, self._edge.fill(GET, given, request, strict=False), request=request
            )
            return JsonReply(value=response_json(self._edge, response.response, request))
        after = query.get("starting_after")
        if after is not None:
            if not str(after).isdigit():
                raise InvalidArgumentError("starting_after: must be a sequence number", field="starting_after")
            given["resume_after_sequence"] = int(after) + 1  # ours begin at 1
        events = self._edge.upstream.stream(
            WATCH, self._edge.fill(WATCH, given, request, strict=False), request=request
        )
        return StreamReply(pieces=self._pieces(events, request))

    async def delete(self, request: Request) -> Reply:
        """Delete a response."""
        rpc = Rpc("ResponsesService.DeleteResponse")
        message = self._edge.fill(rpc, request.params, request, strict=False)
        response = await self._edge.upstream.unary(rpc, message, request=request)
        return JsonReply(value={"id": response.id, "object": "response", "deleted": True})

    async def cancel(self, request: Request) -> Reply:
        """Stop a response that runs in the background."""
        rpc = Rpc("ResponsesService.CancelResponse")
        message = self._edge.fill(rpc, request.params, request, strict=False)
        response = await self._edge.upstream.unary(rpc, message, request=request)
        return JsonReply(value=response_json(self._edge, response.response, request))

    async def compact(self, request: Request) -> Reply:
        """Make a long dialog short."""
        message = self._edge.fill(COMPACT, request_body(request.json()), request, strict=True)
        response = await self._edge.upstream.unary(COMPACT, message, request=request)
        request.tokens += response.usage.total_tokens
        return JsonReply(value=_with_whole_usage(dict(self._edge.encode(response))))

    async def listed(self, request: Request) -> Reply:
        """Stored responses with their input."""

        def write(one: Any) -> dict[str, Any]:  # noqa: ANN401
            written = response_json(self._edge, one, request)
            return {**written, "input": [self._edge.encode(item) for item in one.input]}

        return await paged_list(self._edge, LIST, request, write=write, default=50, most=100)

    async def inputs(self, request: Request) -> Reply:
        """What a response was asked."""
        return await paged_list(self._edge, INPUTS, request, write=self._edge.encode, default=20, most=100)

    async def _pieces(self, events: Events, request: Request) -> AsyncIterator[bytes]:
        begun, last = False, -1
        # Old clients of Llama Stack read neither names of events nor an end mark.
        written = sse.named if not request.openai_mount else _unnamed
        async with events:
            try:
                async for event in events:
                    kind = event.WhichOneof("event")
                    if kind == "heartbeat":
                        yield sse.HEARTBEAT
                        continue
                    value = event_json(self._edge, event, request)
                    if value is not None:
                        begun, last = True, value["sequence_number"]
                        yield written(value["type"], value)
            except StackError as error:
                if not begun:
                    raise
                value = {"type": "error", "message": error.message, "code": error.reason.lower()}
                yield written("error", {**value, "param": error.field or None, "sequence_number": last + 1})
                return
        if request.wants_done:
            yield sse.DONE


def _unnamed(_name: str, value: Any) -> bytes:  # noqa: ANN401
    return sse.data(value)


def request_body(body: dict[str, Any]) -> dict[str, Any]:
    """The body with its unions without tags written as our fields.

    Raises:
        InvalidArgumentError: One of them has another shape.
    """
    given = {key: value for key, value in body.items() if value is not None}
    if isinstance(given.get("input"), str):
        given["input"] = [{"type": "message", "role": "user", "content": given["input"]}]
    conversation = given.get("conversation")
    if isinstance(conversation, dict):
        given["conversation"] = conversation.get("id")
    guardrails = given.get("guardrails")
    if isinstance(guardrails, bool):
        given.pop("guardrails")
        given["default_guardrails"] = guardrails
    elif isinstance(guardrails, list):
        given["guardrails"] = [{"type": one} if isinstance(one, str) else one for one in guardrails]
    return given


def take_secrets(body: dict[str, Any], request: Request) -> None:
    """Take headers and tokens of MCP servers out of the body: they go with this call alone and are never stored.

    Raises:
        InvalidArgumentError: They have another shape.
    """
    tools = body.get("tools")
    if not isinstance(tools, list):
        return
    kept = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "mcp" or not isinstance(tool.get("server_url"), str):
            kept.append(tool)
            continue
        path = f"tools[{index}]"
        headers = FieldReader({"headers": tool.get("headers")}, path=path).mapping("headers") or {}
        for name, value in headers.items():
            if not isinstance(value, str):
                raise wrong(f"{path}.headers.{name}", "a string", value)
        token = FieldReader({"authorization": tool.get("authorization")}, path=path).text("authorization")
        found = dict(headers) | ({"Authorization": f"Bearer {token}"} if token else {})
        if found:
            request.mcp_headers[tool["server_url"]] = found
        kept.append({key: value for key, value in tool.items() if key not in {"headers", "authorization"}})
    body["tools"] = kept


def _check_options(options: Any) -> None:  # noqa: ANN401
    if options is not None and not isinstance(options, dict):
        raise InvalidArgumentError("stream_options: expected an object", field="stream_options")
    for name, value in (options or {}).items():
        if name != "include_obfuscation":
            raise InvalidArgumentError(f"stream_options.{name}: no such field here", field=f"stream_options.{name}")
        if value is not None and not isinstance(value, bool):
            raise InvalidArgumentError(f"stream_options.{name}: expected true or false", field=f"stream_options.{name}")
    # Obfuscation pads events against observers of encrypted traffic; events without padding are what false asks for,
    # and clients must not hang on the padding.


def _included(query: Mapping[str, Any]) -> dict[str, Any]:
    return {"include": query["include"]} if query.get("include") else {}


def response_json(edge: Edge, response: v1.ResponseObject, request: Request) -> dict[str, Any]:
    """A response with all that strict clients want to be there."""
    written = dict(edge.encode(response))
    llama_stack = request.client_version is not None
    if written["conversation"] is not None and not llama_stack:
        written["conversation"] = {"id": written["conversation"]}
    written["reasoning"] = written["reasoning"] or {"effort": None, "summary": None}
    written["service_tier"] = written["service_tier"] or "default"
    written["truncation"] = written["truncation"] or "disabled"
    text = written["text"] or {}
    written["text"] = {
        "format": text.get("format") or {"type": "text"},
        "verbosity": text.get("verbosity") or "medium",
    }
    written["tool_choice"] = written["tool_choice"] or "auto"
    if written["error"] is not None:
        written["error"]["code"] = _error_code(written["error"]["code"])
    return _with_whole_usage(written)


def _with_whole_usage(written: dict[str, Any]) -> dict[str, Any]:
    """With a detail that newer SDKs declare as required, though nothing here counts it."""
    if written["usage"] is not None:
        written["usage"]["input_tokens_details"] |= {"cache_write_tokens": 0}
    return written


def _error_code(reason: str | None) -> str:
    """Why a response failed, in the few words that strict clients know; the message says more."""
    if reason in {"OVERLOADED", "QUOTA_EXCEEDED"}:
        return "rate_limit_exceeded"
    if reason in {"INVALID_VALUE", "MISSING_FIELD", "CONTEXT_LENGTH_EXCEEDED"}:
        return "invalid_prompt"
    return "server_error"


def event_json(edge: Edge, event: Any, request: Request) -> dict[str, Any] | None:  # noqa: ANN401
    """An event as clients read it; None for what only our own stream has."""
    kind = event.WhichOneof("event")
    sequence = event.sequence - 1  # theirs begin at 0
    if kind in _ENDS:
        response = response_json(edge, getattr(event, kind), request)
        request.tokens += getattr(event, kind).usage.total_tokens
        return {"type": f"response.{_ENDS[kind]}", "sequence_number": sequence, "response": response}
    if kind == "error":
        return {"type": "error", "sequence_number": sequence, **edge.encode(event.error)}
    if kind != "progress":
        return None
    which = event.progress.WhichOneof("progress")
    if which in _WHOLE:
        response = response_json(edge, getattr(event.progress, which), request)
        return {"type": f"response.{which}", "sequence_number": sequence, "response": response}
    name = _EVENTS.get(which)
    if name is None:
        return None
    if request.client_version is not None:  # clients of Llama Stack and OGX have another name for it
        name = name.replace("mcp_call_arguments", "mcp_call.arguments")
    written = dict(edge.encode(getattr(event.progress, which)))
    if which == "refusal_done":
        written["refusal"] = written.pop("text")
    if which.startswith(("refusal", "reasoning_text")):
        written.pop("logprobs", None)
    return {"type": name, "sequence_number": sequence, **written}
