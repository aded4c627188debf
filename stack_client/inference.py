"""`client.inference`: chat, completion, embeddings, reranking, tokens."""

from collections.abc import Iterable, Sequence
from typing import Any

import grpc

from llamastack import v1
from stack_client import content
from stack_client.calls import DEFAULT_TIMEOUT, EventStream, unary
from stack_client.content import MessageLike


class Inference:
    """Calls of `InferenceService`. `sampling` keywords are those of `stack_client.content.sampling`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = v1.InferenceServiceStub(channel)

    async def chat(
        self,
        model: str,
        messages: MessageLike | Iterable[MessageLike],
        *,
        tools: Sequence[v1.ToolDefinition] = (),
        tool_config: v1.ToolConfig | None = None,
        response_format: v1.ResponseFormat | None = None,
        logprobs: int | None = None,
        priority: int = 0,
        timeout: float = DEFAULT_TIMEOUT,
        **sampling: Any,  # noqa: ANN401 (checked by content.sampling)
    ) -> v1.ChatCompletionResponse:
        """Answer a dialog.

        Args:
            model: Identifier of the model.
            messages: The dialog; a plain string is one user message.
            tools: Tools that the model may call.
            tool_config: Whether and how it may call them.
            response_format: Restricts what the model may write.
            logprobs: Alternatives per token to report; None reports nothing.
            priority: Before requests of lower priority, -100 to 100.
            timeout: Seconds until the call gives up.
            sampling: temperature, top_p, top_k, max_tokens, stop, seed and penalties.

        Raises:
            StackError: If the call fails.
        """
        request = _chat_request(model, messages, tools, tool_config, response_format, logprobs, priority, sampling)
        response: v1.ChatCompletionResponse = await unary(self._stub.ChatCompletion(request, timeout=timeout))
        return response

    def stream_chat(
        self,
        model: str,
        messages: MessageLike | Iterable[MessageLike],
        *,
        tools: Sequence[v1.ToolDefinition] = (),
        tool_config: v1.ToolConfig | None = None,
        response_format: v1.ResponseFormat | None = None,
        logprobs: int | None = None,
        priority: int = 0,
        timeout: float | None = None,
        **sampling: Any,  # noqa: ANN401 (checked by content.sampling)
    ) -> EventStream[v1.StreamChatCompletionResponse]:
        """Answer a dialog as it is written; arguments as for `chat`. The last event is `complete` or `blocked`."""
        request = _chat_request(model, messages, tools, tool_config, response_format, logprobs, priority, sampling)
        call = self._stub.StreamChatCompletion(v1.StreamChatCompletionRequest(request=request), timeout=timeout)
        return EventStream(call)

    def stream(self, request: v1.StreamChatCompletionRequest) -> EventStream[v1.StreamChatCompletionResponse]:
        """`stream_chat` for a request that is a message already."""
        return EventStream(self._stub.StreamChatCompletion(request))

    async def ask(
        self, request: v1.ChatCompletionRequest, *, timeout: float = DEFAULT_TIMEOUT
    ) -> v1.ChatCompletionResponse:
        """`chat` for a request that is a message already.

        Raises:
            StackError: If the call fails.
        """
        response: v1.ChatCompletionResponse = await unary(self._stub.ChatCompletion(request, timeout=timeout))
        return response

    async def tokens(self, request: v1.TokenizeRequest, *, timeout: float = DEFAULT_TIMEOUT) -> v1.TokenizeResponse:
        """Token ids for a request that is a message already, for example of a dialog with its tools.

        Raises:
            StackError: If the call fails.
        """
        response: v1.TokenizeResponse = await unary(self._stub.Tokenize(request, timeout=timeout))
        return response

    async def complete(
        self,
        model: str,
        text: str,
        *,
        logprobs: int | None = None,
        priority: int = 0,
        timeout: float = DEFAULT_TIMEOUT,
        **sampling: Any,  # noqa: ANN401 (checked by content.sampling)
    ) -> v1.CompletionResponse:
        """Continue a text.

        Raises:
            StackError: If the call fails.
        """
        request = _completion_request(model, text, logprobs, priority, sampling)
        response: v1.CompletionResponse = await unary(self._stub.Completion(request, timeout=timeout))
        return response

    def stream_complete(
        self,
        model: str,
        text: str,
        *,
        logprobs: int | None = None,
        priority: int = 0,
        timeout: float | None = None,
        **sampling: Any,  # noqa: ANN401 (checked by content.sampling)
    ) -> EventStream[v1.StreamCompletionResponse]:
        """Continue a text as it is written. The last event is `complete`."""
        request = v1.StreamCompletionRequest(request=_completion_request(model, text, logprobs, priority, sampling))
        return EventStream(self._stub.StreamCompletion(request, timeout=timeout))

    async def embed(
        self,
        model: str,
        texts: str | Sequence[str],
        *,
        text_truncation: "v1.TextTruncation.ValueType" = v1.TEXT_TRUNCATION_NONE,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> list[list[float]]:
        """Vectors of texts, in their order.

        Raises:
            StackError: If the call fails.
        """
        contents = [content.content(text) for text in ([texts] if isinstance(texts, str) else texts)]
        request = v1.EmbedRequest(model_id=model, contents=contents, text_truncation=text_truncation)
        response: v1.EmbedResponse = await unary(self._stub.Embed(request, timeout=timeout))
        return [list(embedding.values) for embedding in response.embeddings]

    async def rerank(
        self,
        model: str,
        query: str,
        items: Sequence[str],
        *,
        max_num_results: int | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> list[tuple[int, float]]:
        """Index and score of the items that answer a query best, best first.

        Args:
            model: Identifier of a rerank model.
            query: What the items are compared with.
            items: 1 to 1000 texts; one that is too long for the model is read from its beginning.
            max_num_results: Results at most; None means all.
            timeout: Seconds until the call gives up.

        Raises:
            StackError: If the call fails.
        """
        request = v1.RerankRequest(
            model=model,
            query=content.content(query),
            items=[content.content(item) for item in items],
            max_num_results=max_num_results,
        )
        response: v1.RerankResponse = await unary(self._stub.Rerank(request, timeout=timeout))
        return [(item.index, item.relevance_score) for item in response.data]

    async def tokenize(self, model: str, text: str, *, timeout: float = DEFAULT_TIMEOUT) -> list[int]:
        """Token ids of a text.

        Raises:
            StackError: If the call fails.
        """
        request = v1.TokenizeRequest(model_id=model, text=text)
        response: v1.TokenizeResponse = await unary(self._stub.Tokenize(request, timeout=timeout))
        return list(response.token_ids)

    async def detokenize(self, model: str, token_ids: Sequence[int], *, timeout: float = DEFAULT_TIMEOUT) -> str:
        """Text of token ids.

        Raises:
            StackError: If the call fails.
        """
        request = v1.DetokenizeRequest(model_id=model, token_ids=token_ids)
        response: v1.DetokenizeResponse = await unary(self._stub.Detokenize(request, timeout=timeout))
        return response.text


def _chat_request(  # noqa: PLR0917 (private: the two callers pass their own parameters on)
    model: str,
    messages: MessageLike | Iterable[MessageLike],
    tools: Sequence[v1.ToolDefinition],
    tool_config: v1.ToolConfig | None,
    response_format: v1.ResponseFormat | None,
    logprobs: int | None,
    priority: int,
    sampling: dict[str, Any],
) -> v1.ChatCompletionRequest:
    return v1.ChatCompletionRequest(
        model_id=model,
        messages=content.messages(messages),
        sampling_params=content.sampling(**sampling),
        tools=tools,
        tool_config=tool_config,
        response_format=response_format,
        logprobs=None if logprobs is None else v1.LogProbConfig(top_k=logprobs),
        priority=priority,
    )


def _completion_request(
    model: str, text: str, logprobs: int | None, priority: int, sampling: dict[str, Any]
) -> v1.CompletionRequest:
    return v1.CompletionRequest(
        model_id=model,
        content=content.content(text),
        sampling_params=content.sampling(**sampling),
        logprobs=None if logprobs is None else v1.LogProbConfig(top_k=logprobs),
        priority=priority,
    )
