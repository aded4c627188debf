"""The RPC edge of the router: the inference service of the nodes behind it."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from llamastack import v1
from services.router.config import RouterConfig
from services.router.forward import Errand, Forwarder, passed_on
from services.router.prefix import chat_chain, completion_chain
from services.runtime.calls import TENANT
from services.runtime.interceptors.base import header
from services.runtime.stream import EventWriter, RpcContext

ResponseT = TypeVar("ResponseT")


class InferenceService(v1.InferenceServiceServicer):
    """`llamastack.v1.InferenceService` over several nodes."""

    def __init__(
        self, forwarder: Forwarder, config: RouterConfig, *, draining: asyncio.Event, grace_seconds: float
    ) -> None:
        self._forwarder = forwarder
        self._block_bytes = config.prefix_block_bytes
        self._draining = draining
        self._grace = grace_seconds

    async def ChatCompletion(self, request: v1.ChatCompletionRequest, context: RpcContext) -> v1.ChatCompletionResponse:
        """Let a node answer a dialog."""
        job = self._errand("ChatCompletion", request, context, chain=self._chat(request, context))
        return await self._unary(v1.ChatCompletionResponse, job)

    # A coroutine that writes, not a generator: a task group must not be suspended in a yield.
    async def StreamChatCompletion(  # type: ignore[override]
        self, request: v1.StreamChatCompletionRequest, context: RpcContext
    ) -> None:
        """Let a node answer a dialog as it is written."""
        job = self._errand("StreamChatCompletion", request, context, chain=self._chat(request.request, context))
        await self._stream(v1.StreamChatCompletionResponse, job, context)

    async def Completion(self, request: v1.CompletionRequest, context: RpcContext) -> v1.CompletionResponse:
        """Let a node continue a text."""
        job = self._errand("Completion", request, context, chain=self._completion(request, context))
        return await self._unary(v1.CompletionResponse, job)

    async def StreamCompletion(  # type: ignore[override]
        self, request: v1.StreamCompletionRequest, context: RpcContext
    ) -> None:
        """Let a node continue a text as it is written."""
        job = self._errand("StreamCompletion", request, context, chain=self._completion(request.request, context))
        await self._stream(v1.StreamCompletionResponse, job, context)

    async def BatchChatCompletion(
        self, request: v1.BatchChatCompletionRequest, context: RpcContext
    ) -> v1.BatchChatCompletionResponse:
        """Let one node answer all dialogs, for they share a batch there."""
        return await self._unary(v1.BatchChatCompletionResponse, self._errand("BatchChatCompletion", request, context))

    async def BatchCompletion(
        self, request: v1.BatchCompletionRequest, context: RpcContext
    ) -> v1.BatchCompletionResponse:
        """Let one node continue all texts, for they share a batch there."""
        return await self._unary(v1.BatchCompletionResponse, self._errand("BatchCompletion", request, context))

    async def Embed(self, request: v1.EmbedRequest, context: RpcContext) -> v1.EmbedResponse:
        """Let a node turn texts into vectors."""
        return await self._unary(v1.EmbedResponse, self._errand("Embed", request, context))

    async def Rerank(self, request: v1.RerankRequest, context: RpcContext) -> v1.RerankResponse:
        """Let a node score items."""
        return await self._unary(v1.RerankResponse, self._errand("Rerank", request, context))

    async def Classify(self, request: v1.ClassifyRequest, context: RpcContext) -> v1.ClassifyResponse:
        """Let a node put texts into classes."""
        return await self._unary(v1.ClassifyResponse, self._errand("Classify", request, context))

    async def Tokenize(self, request: v1.TokenizeRequest, context: RpcContext) -> v1.TokenizeResponse:
        """Let a node turn text into token ids."""
        return await self._unary(v1.TokenizeResponse, self._errand("Tokenize", request, context))

    async def Detokenize(self, request: v1.DetokenizeRequest, context: RpcContext) -> v1.DetokenizeResponse:
        """Let a node turn token ids into text."""
        return await self._unary(v1.DetokenizeResponse, self._errand("Detokenize", request, context))

    def _errand(
        self,
        method: str,
        request: Any,  # noqa: ANN401 - a request of any type
        context: RpcContext,
        *,
        chain: Sequence[bytes] = (),
    ) -> Errand:
        asked = request.request if hasattr(request, "request") else request  # a stream's holds the unary call's
        model_id = asked.model if isinstance(asked, v1.RerankRequest) else asked.model_id
        metadata = passed_on(context)
        return Errand(method=method, request=request, model_id=model_id, metadata=metadata, chain=chain)

    async def _unary(self, response: type[ResponseT], job: Errand) -> ResponseT:
        answer = await self._forwarder.unary(job)
        assert isinstance(answer, response)
        return answer

    async def _stream(self, response: type[Any], job: Errand, context: RpcContext) -> None:
        """Pass a stream on, with heartbeats of our own."""
        writer: EventWriter[Any] = EventWriter(context, response, draining=self._draining, grace_seconds=self._grace)

        async def forward() -> None:
            async with aclosing(self._forwarder.stream(job)) as events:
                async for event in events:
                    await writer.forward(event)

        await writer.run(forward())

    def _chat(self, request: v1.ChatCompletionRequest, context: RpcContext) -> Sequence[bytes]:
        return chat_chain(request, tenant=header(context, name=TENANT), block_bytes=self._block_bytes)

    def _completion(self, request: v1.CompletionRequest, context: RpcContext) -> Sequence[bytes]:
        return completion_chain(request, tenant=header(context, name=TENANT), block_bytes=self._block_bytes)
