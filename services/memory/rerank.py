"""Ordering by a rerank model of the inference service."""

from collections.abc import Sequence
from typing import Any

import grpc

from llamastack import v1
from stack_client.calls import DEFAULT_TIMEOUT, every_page, unary
from stack_client.content import content
from stack_client.errors import NotFoundError


class Reranker:
    """Rerank models.

    Args:
        channel: To the inference service.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._inference: Any = v1.InferenceServiceStub(channel)
        self._models: Any = v1.ModelsServiceStub(channel)

    async def score(self, model: str, question: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers a question, in their order.

        Args:
            model: Its identifier; empty means the first rerank model served.
            question: What they are compared with.
            texts: At most 1000.

        Raises:
            NotFoundError: If there is no rerank model.
            StackError: If it fails.
        """
        if not texts:
            return []
        request = v1.RerankRequest(
            model=model or await self._first(), query=content(question), items=[content(text) for text in texts]
        )
        response = await unary(self._inference.Rerank(request, timeout=DEFAULT_TIMEOUT))
        scores = {item.index: item.relevance_score for item in response.data}
        return [float(scores[index]) for index in range(len(texts))]

    async def _first(self) -> str:
        models = await every_page(self._models.ListModels, v1.ListModelsRequest(), timeout=DEFAULT_TIMEOUT)
        for model in models:
            if model.model_type == v1.MODEL_TYPE_RERANK:
                return str(model.identifier)
        message = "the inference service has no rerank model; register one, or choose another ranker"
        raise NotFoundError(message, reason="MODEL_NOT_FOUND", field="ranker")
