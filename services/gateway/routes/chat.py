"""Chat completions, OpenAI's."""

from collections.abc import AsyncIterator
from typing import Any

from llamastack import v1
from services.gateway import sse
from services.gateway.edge import Edge
from services.gateway.request import JsonReply, Reply, Request, StreamReply
from services.gateway.routes.chat_answer import Chunks, completion_json
from services.gateway.routes.chat_request import ChatRequest, read_chat
from services.gateway.routes.chat_store import ChatKeeper
from services.gateway.routes.openai_schemas import CHAT_REQUEST, CHAT_RESPONSE
from services.gateway.routing import OPENAI, Route
from services.gateway.upstream import Events, Rpc
from stack_client.errors import StackError

CHAT = Rpc("InferenceService.ChatCompletion")
STREAM = Rpc("InferenceService.StreamChatCompletion")


def routes(edge: Edge) -> list[Route]:
    """The rows."""

    async def chat(request: Request) -> Reply:
        asked = read_chat(edge, request.json())
        keeper = ChatKeeper(edge, asked, request)
        if asked.stream:
            message = v1.StreamChatCompletionRequest(request=asked.message)
            events = edge.upstream.stream(STREAM, message, request=request)
            return StreamReply(pieces=stream(asked, events, request, keeper))
        response = await edge.upstream.unary(CHAT, asked.message, request=request)
        request.tokens += response.usage.total_tokens
        completion = completion_json(response, functions=asked.functions, tier=asked.service_tier)
        await keeper.keep(completion)
        return JsonReply(value=completion)

    return [
        Route(
            method="POST",
            path="/chat/completions",
            handler=chat,
            mounts=OPENAI,
            api="inference",
            scope="inference",
            summary="Answer a chat",
            streams=True,
            request=CHAT_REQUEST,
            response=CHAT_RESPONSE,
        )
    ]


async def stream(asked: ChatRequest, events: Events, request: Request, keeper: ChatKeeper) -> AsyncIterator[bytes]:
    """The chunks of an answer; leaving early ends the work.

    Raises:
        StackError: What failed before the first chunk; later failures are an event of their own.
    """
    chunks = Chunks(
        model=asked.message.model_id,
        include_usage=asked.include_usage,
        functions=asked.functions,
        tier=asked.service_tier,
        answers=asked.message.n or 1,
    )
    begun = False
    async with events:
        try:
            async for event in events:
                await keeper.hear(event, created=chunks.created)
                for piece in _written(chunks, event, request):
                    begun = True
                    yield piece
        except StackError as error:
            if not begun:
                raise
            yield sse.failure(error)
            return
    if request.wants_done:
        yield sse.DONE


def _written(chunks: Chunks, event: Any, request: Request) -> list[bytes]:  # noqa: ANN401
    kind = event.WhichOneof("event")
    if kind == "progress":
        return chunks.progress(event.progress)
    if kind == "start":
        return chunks.start(event.start)
    if kind == "complete":
        request.tokens += event.complete.usage.total_tokens
        return chunks.complete(event.complete)
    if kind == "blocked":
        request.tokens += event.blocked.usage.total_tokens
        return chunks.blocked(event.blocked)
    return [sse.HEARTBEAT] if kind == "heartbeat" else []
