"""What batches need of the gateway: running one request, and knowing models."""

from typing import Any, Protocol

import grpc

from llamastack import v1
from services.runtime.calls import TENANT, current_tenant
from stack_client.calls import unary
from stack_client.errors import NotFoundError

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/moderations")
"""Whose requests a batch may hold."""
MODEL_SECONDS = 10.0
"""For finding out whether a model exists."""


def tenant_metadata() -> tuple[tuple[str, str], ...]:
    """Names the tenant of the current call or batch, over channels with and without the runtime's interceptors."""
    tenant = current_tenant()
    return ((TENANT, tenant),) if tenant else ()


class Execute(Protocol):
    """Runs one request as HTTP would."""

    async def __call__(
        self, endpoint: str, body: dict[str, Any], *, tenant: str, request_id: str
    ) -> tuple[int, dict[str, Any]]:
        """HTTP's status and the body of the answer.

        Args:
            endpoint: One of `ENDPOINTS`.
            body: Of the request.
            tenant: For whom.
            request_id: The same when a request is tried again.

        Raises:
            StackError: As the service raised it; the request counts as answered with the error's status.
        """


class KnowsModel(Protocol):
    """Whether there is a model."""

    async def __call__(self, model: str) -> bool:
        """True when requests may name it.

        Raises:
            StackError: If that cannot be known now.
        """


class RegisteredModels:
    """`KnowsModel` by the inference service.

    Args:
        channel: To it.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = v1.ModelsServiceStub(channel)

    async def __call__(self, model: str) -> bool:
        """True when it is registered."""
        try:
            await unary(
                self._stub.GetModel(
                    v1.GetModelRequest(model_id=model), timeout=MODEL_SECONDS, metadata=tenant_metadata()
                )
            )
        except NotFoundError:
            return False
        return True
