"""`client.models`: what the stack serves."""

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc

from llamastack import v1
from stack_client import content
from stack_client.calls import DEFAULT_TIMEOUT, every_page, unary
from stack_client.errors import DeadlineExceededError, InvalidArgumentError

READY_POLL_SECONDS = 0.2


class Models:
    """Calls of `ModelsService`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = v1.ModelsServiceStub(channel)

    async def list(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[v1.Model]:
        """All models, by identifier.

        Raises:
            StackError: If the call fails.
        """
        return await every_page(self._stub.ListModels, v1.ListModelsRequest(), timeout=timeout)

    async def get(self, model: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Model:
        """One model.

        Raises:
            NotFoundError: If there is none of that identifier.
        """
        response: v1.GetModelResponse = await unary(
            self._stub.GetModel(v1.GetModelRequest(model_id=model), timeout=timeout)
        )
        return response.model

    async def register(
        self,
        model: str,
        *,
        provider_model_id: str = "",
        provider_id: str = "",
        model_type: "v1.ModelType.ValueType" = v1.MODEL_TYPE_LLM,
        metadata: Mapping[str, Any] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.Model:
        """Register a model; it loads in the background, see `wait_ready`.

        `base@name` is a LoRA adapter of the model `base`; `provider_model_id` is its folder (PEFT's format).

        Raises:
            NotFoundError: If an adapter's base is not registered.
            FailedPreconditionError: If an adapter's base could not be loaded.
            AlreadyExistsError: If the identifier has other content.
            InvalidArgumentError: If the provider is unknown.
        """
        request = v1.RegisterModelRequest(
            model_id=model,
            provider_model_id=provider_model_id,
            provider_id=provider_id,
            model_type=model_type,
            metadata=content.struct(metadata),
        )
        response: v1.RegisterModelResponse = await unary(self._stub.RegisterModel(request, timeout=timeout))
        return response.model

    async def wait_ready(self, model: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Model:
        """Wait until a model has loaded.

        Raises:
            InvalidArgumentError: If it could not be loaded; the message says why.
            DeadlineExceededError: If it takes longer than `timeout` seconds.
            NotFoundError: If there is none of that identifier.
        """
        doing = "loading"
        try:
            async with asyncio.timeout(timeout):
                while True:
                    found = await self.get(model)
                    if found.state == v1.MODEL_STATE_READY:
                        return found
                    if found.state == v1.MODEL_STATE_FAILED:
                        raise InvalidArgumentError(f"model {model!r} could not be loaded: {found.state_message}")
                    doing = found.state_message or doing
                    await asyncio.sleep(READY_POLL_SECONDS)
        except TimeoutError:
            raise DeadlineExceededError(f"model {model!r} is not ready after {timeout:g} s: {doing}") from None

    async def unregister(self, model: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Remove a model and free its memory.

        Raises:
            NotFoundError: If there is none of that identifier.
            FailedPreconditionError: If adapters of it are registered.
        """
        await unary(self._stub.UnregisterModel(v1.UnregisterModelRequest(model_id=model), timeout=timeout))
