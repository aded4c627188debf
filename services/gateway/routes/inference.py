"""Llama Stack's own inference routes."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.message import Message

from llamastack import v1
from services.gateway import sse
from services.gateway.edge import Edge
from services.gateway.request import JsonReply, Reply, Request, StreamReply
from services.gateway.routing import ALPHA, Route
from services.gateway.upstream import Events, Rpc
from stack_client.errors import InvalidArgumentError, StackError

CHAT, STREAM_CHAT = Rpc("InferenceService.ChatCompletion"), Rpc("InferenceService.StreamChatCompletion")
COMPLETION, STREAM_COMPLETION = Rpc("InferenceService.Completion"), Rpc("InferenceService.StreamCompletion")
_TEXT_START = {"type": "text", "text": ""}


def routes(edge: Edge) -> list[Route]:
    """The rows."""
    shared: dict[str, Any] = {"method": "POST", "api": "inference", "scope": "inference"}

    def spent(response: Any, request: Request) -> Reply:  # noqa: ANN401
        request.tokens += getattr(response, "usage", v1.Usage()).total_tokens
        return JsonReply(value=edge.encode(response))

    return [
        Route(
            path="/inference/chat-completion",
            handler=_streaming(edge, CHAT, STREAM_CHAT, chat_chunk),
            summary="Answer a chat",
            streams=True,
            request=v1.ChatCompletionRequest,
            response=v1.ChatCompletionResponse,
            **shared,
        ),
        Route(
            path="/inference/completion",
            handler=_streaming(edge, COMPLETION, STREAM_COMPLETION, completion_chunk),
            summary="Continue a text",
            streams=True,
            request=v1.CompletionRequest,
            response=v1.CompletionResponse,
            **shared,
        ),
        Route(
            path="/inference/embeddings",
            handler=edge.unary("InferenceService.Embed", spent),
            summary="Embed contents",
            request=v1.EmbedRequest,
            response=v1.EmbedResponse,
            **shared,
        ),
        Route(
            path="/inference/batch-chat-completion",
            handler=_batch_chat(edge),
            summary="Answer several chats",
            response=v1.BatchChatCompletionResponse,
            **shared,
        ),
        Route(
            path="/inference/batch-completion",
            handler=edge.unary("InferenceService.BatchCompletion", spent),
            summary="Continue several texts",
            request=v1.BatchCompletionRequest,
            response=v1.BatchCompletionResponse,
            **shared,
        ),
        Route(
            path="/inference/rerank",
            handler=edge.unary("InferenceService.Rerank", edge.whole),
            mounts=ALPHA,
            summary="Order items by their relevance to a query",
            request=v1.RerankRequest,
            response=v1.RerankResponse,
            **shared,
        ),
    ]


def with_tool_config(body: dict[str, Any]) -> dict[str, Any]:
    """The body with the deprecated `tool_choice` and `tool_prompt_format` moved into `tool_config`.

    Raises:
        InvalidArgumentError: They contradict it.
    """
    given = dict(body)
    old = {key: given.pop(key) for key in ("tool_choice", "tool_prompt_format") if key in given}
    old = {key: value for key, value in old.items() if value is not None}
    if not old:
        return given
    config = given.get("tool_config") or {}
    if not isinstance(config, dict):
        raise InvalidArgumentError("tool_config: expected an object", field="tool_config")
    for key, value in old.items():
        if config.get(key) not in (None, value):
            raise InvalidArgumentError(f"{key}: contradicts tool_config.{key}; leave it out", field=key)
    given["tool_config"] = {**config, **old}
    return given


def _batch_chat(edge: Edge) -> Callable[[Request], Any]:
    rpc = Rpc("InferenceService.BatchChatCompletion")

    async def handler(request: Request) -> Reply:
        body = with_tool_config(request.json())
        dialogs = body.get("messages_batch")
        if isinstance(dialogs, list):
            body["messages_batch"] = [{"messages": one} if isinstance(one, list) else one for one in dialogs]
        message = edge.fill(rpc, body, request, strict=False)
        response = await edge.upstream.unary(rpc, message, request=request)
        request.tokens += sum(one.usage.total_tokens for one in response.batch)
        return JsonReply(value=edge.encode(response))

    return handler


def _streaming(
    edge: Edge, unary: Rpc, streamed: Rpc, chunk: Callable[[Edge, Any], dict[str, Any] | None]
) -> Callable[[Request], Any]:
    async def handler(request: Request) -> Reply:
        body = with_tool_config(request.json())
        wants_stream = body.pop("stream", None)
        if wants_stream is not None and not isinstance(wants_stream, bool):
            raise InvalidArgumentError("stream: expected true or false", field="stream")
        message = edge.fill(unary, body, request, strict=False)
        if not wants_stream:
            response = await edge.upstream.unary(unary, message, request=request)
            request.tokens += response.usage.total_tokens
            return JsonReply(value=edge.encode(response))
        wrapped: Message = streamed.request(request=message)
        events = edge.upstream.stream(streamed, wrapped, request=request)
        return StreamReply(pieces=_pieces(edge, events, request, chunk))

    return handler


async def _pieces(
    edge: Edge, events: Events, request: Request, chunk: Callable[[Edge, Any], dict[str, Any] | None]
) -> AsyncIterator[bytes]:
    begun = False
    async with events:
        try:
            async for event in events:
                if event.WhichOneof("event") == "heartbeat":
                    yield sse.HEARTBEAT
                    continue
                for name in ("complete", "blocked"):
                    if event.WhichOneof("event") == name:
                        request.tokens += getattr(event, name).usage.total_tokens
                written = chunk(edge, event)
                if written is not None:
                    begun = True
                    yield sse.data(written)
        except StackError as error:
            if not begun:
                raise
            yield sse.failure(error)


def chat_chunk(edge: Edge, event: Any) -> dict[str, Any] | None:  # noqa: ANN401
    """An event of a chat: one start, any number of progress, one complete."""
    kind = event.WhichOneof("event")
    if kind == "start":
        return {"event": {"event_type": "start", "delta": _TEXT_START, "logprobs": None, "stop_reason": None}}
    if kind == "progress":
        progress = event.progress
        logprobs = [edge.encode(one) for one in progress.logprobs] or None
        delta = edge.encode(progress.delta)
        return {"event": {"event_type": "progress", "delta": delta, "logprobs": logprobs, "stop_reason": None}}
    if kind == "complete":
        done = edge.codec.encode_fields(event.complete)
        inner = {"event_type": "complete", "delta": _TEXT_START, "logprobs": None, "stop_reason": done["stop_reason"]}
        return {"event": inner, "metrics": done["metrics"], "usage": done["usage"]}
    if kind == "blocked":
        delta = {"type": "text", "text": event.blocked.user_message}
        inner = {"event_type": "complete", "delta": delta, "logprobs": None, "stop_reason": "end_of_turn"}
        return {"event": inner, "blocked": edge.encode(event.blocked)}
    return None


def completion_chunk(edge: Edge, event: Any) -> dict[str, Any] | None:  # noqa: ANN401
    """An event of a completion."""
    kind = event.WhichOneof("event")
    if kind == "progress":
        logprobs = [edge.encode(one) for one in event.progress.logprobs] or None
        return {"delta": event.progress.delta, "stop_reason": None, "logprobs": logprobs}
    if kind == "complete":
        done = edge.codec.encode_fields(event.complete)
        return {"delta": "", "stop_reason": done["stop_reason"], "logprobs": None, "metrics": done["metrics"]}
    return None
