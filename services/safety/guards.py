"""Guard models: calls of the inference service, each with a deadline."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from llamastack import v1
from stack_client.calls import unary
from stack_client.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    StackError,
    UnavailableError,
    UnsupportedError,
)

STAMP_SECONDS = 1.0


class Guards:
    """The inference service as shields see it: every call has a deadline.

    Args:
        channel: To the inference service.
        seconds: Deadline of one call.
    """

    def __init__(self, channel: grpc.aio.Channel, *, seconds: float) -> None:
        self._inference: Any = v1.InferenceServiceStub(channel)
        self._models: Any = v1.ModelsServiceStub(channel)
        self._seconds = seconds
        self._stamps: dict[str, tuple[float, str]] = {}

    async def model(self, model_id: str) -> v1.Model:
        """A model's registration, with the facts that its provider found in `metadata`.

        Raises:
            NotFoundError: If it is not registered.
            StackError: If the call fails.
        """
        response: v1.GetModelResponse = await self._call(
            self._models.GetModel, v1.GetModelRequest(model_id=model_id), model_id
        )
        return response.model

    async def stamp(self, model_id: str) -> str:
        """What changes when other weights are registered under a model's name; at most a second old.

        It equals no other one when the model cannot be asked about: what it said before then proves nothing.
        """
        until, stamp = self._stamps.get(model_id, (0.0, ""))
        if time.monotonic() < until:
            return stamp
        try:
            model = await self.model(model_id)
        except StackError:
            return f"unknown {time.monotonic()}"
        stamp = f"{model.created.ToNanoseconds()} {model.provider_resource_id}"
        self._stamps[model_id] = (time.monotonic() + STAMP_SECONDS, stamp)
        return stamp

    async def chat(self, request: v1.ChatCompletionRequest) -> v1.ChatCompletionResponse:
        """A dialog's answer.

        Raises:
            StackError: If the call fails.
        """
        response: v1.ChatCompletionResponse = await self._call(
            self._inference.ChatCompletion, request, request.model_id
        )
        return response

    async def complete(self, request: v1.CompletionRequest) -> v1.CompletionResponse:
        """A continuation of a text or of token ids.

        Raises:
            StackError: If the call fails.
        """
        response: v1.CompletionResponse = await self._call(self._inference.Completion, request, request.model_id)
        return response

    async def tokenize(self, request: v1.TokenizeRequest) -> v1.TokenizeResponse:
        """Token ids.

        Raises:
            StackError: If the call fails.
        """
        response: v1.TokenizeResponse = await self._call(self._inference.Tokenize, request, request.model_id)
        return response

    async def classify(self, request: v1.ClassifyRequest) -> v1.ClassifyResponse:
        """Classes of texts.

        Raises:
            StackError: If the call fails.
        """
        response: v1.ClassifyResponse = await self._call(self._inference.Classify, request, request.model_id)
        return response

    async def embed(self, model_id: str, texts: Sequence[str]) -> list[Sequence[float]]:
        """Vectors of texts; too long ones are cut at their end.

        Raises:
            StackError: If the call fails.
        """
        request = v1.EmbedRequest(
            model_id=model_id,
            contents=[v1.InterleavedContent(items=[v1.ContentItem(text=text)]) for text in texts],
            text_truncation=v1.TEXT_TRUNCATION_END,
        )
        response: v1.EmbedResponse = await self._call(self._inference.Embed, request, model_id)
        return [embedding.values for embedding in response.embeddings]

    async def _call(self, method: Callable[..., Awaitable[Any]], request: object, model_id: str) -> Any:  # noqa: ANN401
        try:
            return await unary(method(request, timeout=self._seconds))
        except DeadlineExceededError as error:
            message = f"guard model {model_id!r} did not answer within {self._seconds:g} s"
            raise DeadlineExceededError(message, metadata={"model": model_id}) from error
        except (UnavailableError, ResourceExhaustedError) as error:
            message = f"guard model {model_id!r} cannot be asked now: {error.message}"
            raise UnavailableError(message, metadata={"model": model_id}, retry_after=error.retry_after) from error
        except UnsupportedError:
            raise
        except InvalidArgumentError as error:  # not the caller's fault: he wrote a text, we wrote the request
            message = f"guard model {model_id!r} refuses: {error.message}"
            raise FailedPreconditionError(message, metadata={"model": model_id}) from error
        except StackError as error:
            error.metadata.setdefault("model", model_id)
            raise
