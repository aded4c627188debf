"""The RPC edge of inference: looks the model up, lets its provider answer, and shapes the answer into messages."""

import asyncio
import functools
import itertools
import os

from llamastack import v1
from services.inference.answers import chat_response, completion_complete, completion_response
from services.inference.chat_stream import ChatStream, shielded_answer, single_requests
from services.inference.coalesce import Collector, Delta
from services.inference.generations import run_generations
from services.inference.provider import Provider
from services.inference.registry import ModelRegistry
from services.inference.shielding import check_shields
from services.inference.validate import check_chat, check_classify, check_priority, check_rerank, check_tokenize
from services.runtime.stream import EventWriter, RpcContext
from services.runtime.together import together
from stack_client.errors import InvalidArgumentError
from stack_client.safety import Safety

MAX_BATCH = 256
MAX_EMBED_TEXTS = 2048
MAX_CLASSIFY_TEXTS = 256
MAX_RERANK_ITEMS = 1000


class InferenceService(v1.InferenceServiceServicer):
    """`llamastack.v1.InferenceService`."""

    def __init__(
        self, registry: ModelRegistry, *, safety: Safety | None = None, draining: asyncio.Event, grace_seconds: float
    ) -> None:
        self._registry = registry
        self._safety = safety
        self._draining = draining
        self._grace = grace_seconds
        self._prefix = os.urandom(4).hex()
        self._numbers = itertools.count(1)

    async def ChatCompletion(self, request: v1.ChatCompletionRequest, context: RpcContext) -> v1.ChatCompletionResponse:
        """Answer a dialog."""
        return await self._chat(request)

    # A coroutine that writes, not a generator: a task group must not be suspended in a yield.
    async def StreamChatCompletion(  # type: ignore[override]
        self, request: v1.StreamChatCompletionRequest, context: RpcContext
    ) -> None:
        """Answer a dialog as it is written."""
        chat = request.request
        self._check(chat)
        self._registry.ready(chat.model_id, of_type=v1.MODEL_TYPE_LLM)
        stream = ChatStream(
            chat,
            EventWriter(context, v1.StreamChatCompletionResponse, draining=self._draining, grace_seconds=self._grace),
            answer_id=self._new_id("chatcmpl"),
            safety=self._safety,
        )
        await stream.run(lambda one: functools.partial(self._provider(one).chat, one))

    async def Completion(self, request: v1.CompletionRequest, context: RpcContext) -> v1.CompletionResponse:
        """Continue a text."""
        return await self._complete(request)

    async def StreamCompletion(  # type: ignore[override]
        self, request: v1.StreamCompletionRequest, context: RpcContext
    ) -> None:
        """Continue a text as it is written."""
        text = request.request
        check_priority(text.priority)
        provider = self._registry.ready(text.model_id, of_type=v1.MODEL_TYPE_LLM)
        writer = EventWriter(context, v1.StreamCompletionResponse, draining=self._draining, grace_seconds=self._grace)
        said = Collector()

        async def start() -> None:
            await writer.write(start=v1.CompletionStart(id=self._new_id("cmpl"), model_id=text.model_id))

        async def forward(index: int, delta: Delta) -> None:  # noqa: ARG001 (there is one)
            piece = "".join(delta.text)
            said.text(piece, tokens=0)
            await writer.write(progress=v1.CompletionProgress(delta=piece, logprobs=delta.logprobs))

        [answer] = await run_generations([functools.partial(provider.complete, text)], start, forward, writer)
        await writer.write(complete=completion_complete(answer, said))

    async def BatchChatCompletion(
        self, request: v1.BatchChatCompletionRequest, context: RpcContext
    ) -> v1.BatchChatCompletionResponse:
        """Answer several dialogs in one batch."""
        _check_count(len(request.messages_batch), field="messages_batch", most=MAX_BATCH)
        answers = await together(
            [
                self._chat(
                    v1.ChatCompletionRequest(
                        model_id=request.model_id,
                        messages=dialog.messages,
                        priority=request.priority,
                        sampling_params=request.sampling_params,
                        tools=request.tools,
                        tool_config=request.tool_config,
                        response_format=request.response_format if request.HasField("response_format") else None,
                        logprobs=request.logprobs if request.HasField("logprobs") else None,
                    )
                )
                for dialog in request.messages_batch
            ]
        )
        return v1.BatchChatCompletionResponse(batch=answers)

    async def BatchCompletion(
        self, request: v1.BatchCompletionRequest, context: RpcContext
    ) -> v1.BatchCompletionResponse:
        """Continue several texts in one batch."""
        _check_count(len(request.content_batch), field="content_batch", most=MAX_BATCH)
        answers = await together(
            [
                self._complete(
                    v1.CompletionRequest(
                        model_id=request.model_id,
                        content=content,
                        priority=request.priority,
                        sampling_params=request.sampling_params,
                        response_format=request.response_format if request.HasField("response_format") else None,
                        logprobs=request.logprobs if request.HasField("logprobs") else None,
                    )
                )
                for content in request.content_batch
            ]
        )
        return v1.BatchCompletionResponse(batch=answers)

    async def Embed(self, request: v1.EmbedRequest, context: RpcContext) -> v1.EmbedResponse:
        """Turn texts into vectors."""
        provider = self._registry.ready(request.model_id, of_type=v1.MODEL_TYPE_EMBEDDING)
        _check_count(len(request.contents), field="contents", most=MAX_EMBED_TEXTS)
        return await provider.embed(request)

    async def Rerank(self, request: v1.RerankRequest, context: RpcContext) -> v1.RerankResponse:
        """Score items against a query."""
        provider = self._registry.ready(request.model, of_type=v1.MODEL_TYPE_RERANK, field="model")
        _check_count(len(request.items), field="items", most=MAX_RERANK_ITEMS)
        check_rerank(request)
        return await provider.rerank(request)

    async def Classify(self, request: v1.ClassifyRequest, context: RpcContext) -> v1.ClassifyResponse:
        """Put texts into classes."""
        provider = self._registry.ready(request.model_id, of_type=v1.MODEL_TYPE_CLASSIFIER)
        _check_count(len(request.texts), field="texts", most=MAX_CLASSIFY_TEXTS)
        check_classify(request)
        return await provider.classify(request)

    async def Tokenize(self, request: v1.TokenizeRequest, context: RpcContext) -> v1.TokenizeResponse:
        """Turn text or a dialog into token ids."""
        check_tokenize(request)
        model = self._registry.get(request.model_id)
        provider = self._registry.ready(request.model_id, of_type=model.model_type)
        return await provider.tokenize(request)

    async def Detokenize(self, request: v1.DetokenizeRequest, context: RpcContext) -> v1.DetokenizeResponse:
        """Turn token ids into text."""
        model = self._registry.get(request.model_id)
        provider = self._registry.ready(request.model_id, of_type=model.model_type)
        return await provider.detokenize(request)

    async def _chat(self, request: v1.ChatCompletionRequest) -> v1.ChatCompletionResponse:
        self._check(request)
        provider = self._provider(request)
        answer_id = self._new_id("chatcmpl")

        async def answer(chat: v1.ChatCompletionRequest) -> v1.ChatCompletionResponse:
            requests = single_requests(chat)
            said = [Collector() for _ in requests]
            answers = await together([provider.chat(one, sink) for one, sink in zip(requests, said, strict=True)])
            return chat_response(answers, said, answer_id=answer_id, model_id=chat.model_id)

        if not request.input_shields and not request.output_shields:
            return await answer(request)
        assert self._safety is not None
        return await shielded_answer(request, answer, safety=self._safety, answer_id=answer_id)

    def _check(self, chat: v1.ChatCompletionRequest) -> None:
        check_chat(chat)
        check_shields(chat, self._safety)

    def _provider(self, chat: v1.ChatCompletionRequest) -> Provider:
        return self._registry.ready(chat.model_id, of_type=v1.MODEL_TYPE_LLM)

    async def _complete(self, request: v1.CompletionRequest) -> v1.CompletionResponse:
        check_priority(request.priority)
        provider = self._registry.ready(request.model_id, of_type=v1.MODEL_TYPE_LLM)
        said = Collector()
        answer = await provider.complete(request, said)
        return completion_response(answer, said, answer_id=self._new_id("cmpl"))

    def _new_id(self, kind: str) -> str:
        return f"{kind}-{self._prefix}-{next(self._numbers)}"


def _check_count(count: int, *, field: str, most: int) -> None:
    if count == 0:
        raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
    if count > most:
        raise InvalidArgumentError(f"{field} has {count} entries; at most {most} are allowed", field=field)
