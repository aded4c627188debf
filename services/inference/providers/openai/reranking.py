"""Reranking by endpoints that have a call for it beyond OpenAI's API, of the shape that Jina gave it."""

import math

from llamastack import v1
from services.inference.providers.openai.endpoint import Endpoint, Json
from services.inference.rerank_text import rerank_response, texts_of
from stack_client.errors import UnavailableError, UnsupportedError

DIALECTS = ("vllm", "llamacpp")


def check_reranks(endpoint: Endpoint) -> None:
    """Refuse endpoints without the call.

    Raises:
        UnsupportedError: If the endpoint's dialect has none.
    """
    if endpoint.config.dialect not in DIALECTS:
        message = (
            f"endpoint {endpoint.name!r} of dialect {endpoint.config.dialect} has no call that reranks; "
            f"dialects that have it: {', '.join(DIALECTS)}"
        )
        raise UnsupportedError(message, field="model_type")


async def rerank(endpoint: Endpoint, model: str, request: v1.RerankRequest) -> v1.RerankResponse:
    """Scores as the endpoint gives them, best first.

    All of them are asked for: which of equal ones come first is ours to say.

    Raises:
        StackError: If the endpoint is away, refuses, or answers in another form.
    """
    query, items = texts_of(request)
    answer = await endpoint.post("rerank", {"model": model, "query": query, "documents": items})
    return rerank_response(request, _scores(answer, len(items)))


def _scores(answer: Json, count: int) -> list[float]:
    """Scores in the order of the items."""
    try:
        scores = {int(entry["index"]): float(entry["relevance_score"]) for entry in answer["results"]}
        found = [scores[index] for index in range(count)]
    except (KeyError, TypeError, ValueError):
        found = []
    if len(found) != count or not all(map(math.isfinite, found)):
        message = f"the endpoint did not answer {count} items with a score each; is its model one that reranks?"
        raise UnavailableError(message)
    return found
