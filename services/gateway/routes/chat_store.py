"""Chat completions that are kept for their clients: stored, fetched, listed, noted, deleted."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import orjson

from llamastack import v1
from services.gateway.edge import Edge, whole_number
from services.gateway.request import JsonReply, Reply, Request
from services.gateway.routes.chat_answer import completion_json
from services.gateway.routes.chat_request import ChatRequest, read_metadata
from services.gateway.routes.openai_schemas import CHAT_RESPONSE
from services.gateway.routes.pages import page_query, paged_list
from services.gateway.routing import OPENAI, Route, Row, table
from services.gateway.upstream import Rpc, missing_service
from stack_client.errors import InvalidArgumentError, NotFoundError, StackError

logger = logging.getLogger(__name__)

STORE, GET = Rpc("ChatCompletionsService.StoreChatCompletion"), Rpc("ChatCompletionsService.GetChatCompletion")
LIST, UPDATE = Rpc("ChatCompletionsService.ListChatCompletions"), Rpc("ChatCompletionsService.UpdateChatCompletion")
DELETE = Rpc("ChatCompletionsService.DeleteChatCompletion")
MOST, DEFAULT = 100, 20
_PARTS = ("name", "tool_calls", "tool_call_id", "refusal", "function_call", "annotations", "audio")


class ChatKeeper:
    """Keeps the answer to one request, where its client wants that.

    Clients of Llama Stack fetch what they asked again unless they say otherwise; others have to ask for it.

    Args:
        edge: Channels and codec.
        asked: The request.
        request: As it came.

    Raises:
        UnsupportedError: It is to be kept, and no service could do it.
    """

    def __init__(self, edge: Edge, asked: ChatRequest, request: Request) -> None:
        there = edge.upstream.has(STORE.host)
        if asked.store and not there:
            raise missing_service(STORE.host)
        self._edge = edge
        self._asked = asked
        self._request = request
        self.wanted = bool(asked.store) or (asked.store is None and there and request.client_version is not None)
        """Whether it is to be kept."""
        self._logprobs: dict[int, list[v1.TokenLogProbs]] = defaultdict(list)
        self._id = ""

    async def keep(self, completion: Mapping[str, Any]) -> None:
        """Keep an answer.

        Raises:
            StackError: It cannot be kept, and the client asked for that by name.
        """
        if not self.wanted:
            return
        messages = self._request.json().get("messages") or []
        stored = v1.StoredChatCompletion(
            completion_id=completion["id"],
            model=completion["model"],
            metadata=self._asked.metadata,
            input_messages_json=orjson.dumps(messages).decode(),
            completion_json=orjson.dumps(completion).decode(),
        )
        stored.created_at.seconds = completion["created"]
        try:
            message = v1.StoreChatCompletionRequest(completion=stored)
            await self._edge.upstream.unary(STORE, message, request=self._request)
        except StackError as error:
            if self._asked.store:
                raise
            logger.warning("a chat completion is not kept", extra={"reason": error.reason})

    async def hear(self, event: Any, *, created: int) -> None:  # noqa: ANN401 - an event of the stream
        """Take an event of a streamed answer; the answer is kept whole before its end is told.

        Raises:
            StackError: As `keep` does.
        """
        if not self.wanted:
            return
        match event.WhichOneof("event"):
            case "start":
                self._id = event.start.id
            case "progress":
                self._logprobs[event.progress.choice_index] += event.progress.logprobs
            case "complete":
                await self._keep_whole(self._of_complete(event.complete), created)
            case "blocked":
                response = v1.ChatCompletionResponse(
                    completion_message=event.blocked.completion_message,
                    usage=event.blocked.usage,
                    blocked=event.blocked,
                )
                await self._keep_whole(response, created)

    def _of_complete(self, complete: v1.ChatCompletionComplete) -> v1.ChatCompletionResponse:
        response = v1.ChatCompletionResponse(
            completion_message=complete.completion_message,
            finish_reason=complete.finish_reason,
            usage=complete.usage,
            choices=complete.choices,
            logprobs=self._logprobs[0],
        )
        for choice in response.choices:
            choice.logprobs.extend(self._logprobs[choice.index])
        return response

    async def _keep_whole(self, response: v1.ChatCompletionResponse, created: int) -> None:
        response.id, response.model_id = self._id, self._asked.message.model_id
        written = completion_json(response, functions=self._asked.functions, tier=self._asked.service_tier)
        await self.keep({**written, "created": created})


def routes(edge: Edge) -> list[Route]:
    """The rows."""
    store = ChatStore(edge)
    one = "/chat/completions/{completion_id}"
    metadata = {"metadata": {"type": "object", "additionalProperties": {"type": "string"}}}
    listing = {**page_query("model", most=MOST, default=DEFAULT), **metadata}
    rows: list[Row] = [
        ("GET", "/chat/completions", store.listed, "List stored chats", {"query": listing}),
        ("GET", one, store.show, "Show a stored chat", {"response": CHAT_RESPONSE}),
        ("POST", one, store.update, "Change the notes of a stored chat", {
            "request": {"type": "object", "properties": metadata, "required": ["metadata"]},
            "response": CHAT_RESPONSE,
        }),
        ("DELETE", one, store.delete, "Delete a stored chat", {}),
        ("GET", f"{one}/messages", store.messages, "List what a stored chat was asked",
         {"query": page_query(most=MOST, default=DEFAULT)}),
    ]  # fmt: skip
    return table(rows, api="inference", scope="inference", mounts=OPENAI)


class ChatStore:
    """The handlers.

    Args:
        edge: Channels and codec.
    """

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def listed(self, request: Request) -> Reply:
        """Stored completions with their messages."""
        return await paged_list(self._edge, LIST, request, write=stored_json, default=DEFAULT, most=MOST, empty="")

    async def show(self, request: Request) -> Reply:
        """One of them."""
        return JsonReply(value=await asyncio.to_thread(stored_json, await self._get(request)))

    async def update(self, request: Request) -> Reply:
        """Replace the notes."""
        body = request.json()
        unknown = sorted(body.keys() - {"metadata"})
        if unknown:
            raise InvalidArgumentError(f"{unknown[0]}: only metadata can be changed", field=unknown[0])
        if not isinstance(body.get("metadata"), dict):
            raise InvalidArgumentError("metadata: expected an object", field="metadata")
        completion_id = request.params["completion_id"]
        message = v1.UpdateChatCompletionRequest(completion_id=completion_id, metadata=read_metadata(body["metadata"]))
        response = await self._edge.upstream.unary(UPDATE, message, request=request)
        return JsonReply(value=stored_json(response.completion))

    async def delete(self, request: Request) -> Reply:
        """Forget it."""
        message = v1.DeleteChatCompletionRequest(completion_id=request.params["completion_id"])
        await self._edge.upstream.unary(DELETE, message, request=request)
        return JsonReply(
            value={"object": "chat.completion.deleted", "id": request.params["completion_id"], "deleted": True}
        )

    async def messages(self, request: Request) -> Reply:
        """What was asked, in pages."""
        stored = await self._get(request)
        query = request.query()
        limit = whole_number(query.get("limit"), "limit", default=DEFAULT)
        if not 1 <= limit <= MOST:
            raise InvalidArgumentError(f"limit: {limit} is out of range; give 1 to {MOST}", field="limit")
        order = query.get("order", "asc")
        if order not in {"asc", "desc"}:
            raise InvalidArgumentError(f"order: {order!r} is none of asc, desc", field="order")
        given = orjson.loads(stored.input_messages_json)
        found = [_message_json(one, f"{stored.completion_id}-{place}") for place, one in enumerate(given)]
        found = found if order == "asc" else found[::-1]
        after = query.get("after")
        first = _place(found, str(after)) + 1 if after else 0
        page = found[first : first + limit]
        return JsonReply(
            value={
                "object": "list",
                "data": page,
                "first_id": page[0]["id"] if page else "",
                "last_id": page[-1]["id"] if page else "",
                "has_more": first + limit < len(found),
            }
        )

    async def _get(self, request: Request) -> v1.StoredChatCompletion:
        message = v1.GetChatCompletionRequest(completion_id=request.params["completion_id"])
        response = await self._edge.upstream.unary(GET, message, request=request)
        found: v1.StoredChatCompletion = response.completion
        return found


def stored_json(stored: v1.StoredChatCompletion) -> dict[str, Any]:
    """A stored completion as it was answered, with what was asked."""
    completion: dict[str, Any] = orjson.loads(stored.completion_json)
    return {
        **completion,
        "input_messages": orjson.loads(stored.input_messages_json),
        "metadata": dict(stored.metadata),
    }


def _message_json(message: Mapping[str, Any], message_id: str) -> dict[str, Any]:
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    head = {"id": message_id, "role": message.get("role"), "content": None if parts else content}
    return {**head, "content_parts": parts, **{name: message.get(name) for name in _PARTS}}


def _place(found: list[dict[str, Any]], message_id: str) -> int:
    for place, one in enumerate(found):
        if one["id"] == message_id:
            return place
    raise NotFoundError(f"after: there is no message {message_id!r} in this list", metadata={"message": message_id})
