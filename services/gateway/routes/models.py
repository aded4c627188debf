"""Models: one shape for clients of all versions."""

from typing import Any

from llamastack import v1
from services.gateway.edge import Edge
from services.gateway.request import JsonReply, Reply, Request
from services.gateway.routing import OPENAI, Route
from services.gateway.upstream import Rpc

LIST = Rpc("ModelsService.ListModels")


def routes(edge: Edge) -> list[Route]:
    """The rows."""

    def one(response: Any, _request: Request) -> Reply:  # noqa: ANN401
        return JsonReply(value=model_json(edge, response.model))

    async def listed(request: Request) -> Reply:
        models = await edge.every(LIST, v1.ListModelsRequest(), request=request)
        return JsonReply(value={"object": "list", "data": [model_json(edge, model) for model in models]})

    kinds: dict[str, Any] = {"api": "models", "response": v1.Model}
    return [
        Route(method="GET", path="/models", handler=listed, mounts=OPENAI, summary="List models", **kinds),
        Route(
            method="GET",
            path="/models/{model_id:path}",
            handler=edge.unary("ModelsService.GetModel", one),
            mounts=OPENAI,
            summary="Show a model",
            **kinds,
        ),
        Route(
            method="POST",
            path="/models",
            handler=edge.unary("ModelsService.RegisterModel", one, drop=("model_validation",)),
            summary="Register a model",
            scope="admin",
            request=v1.RegisterModelRequest,
            **kinds,
        ),
        Route(
            method="DELETE",
            path="/models/{model_id:path}",
            handler=edge.unary("ModelsService.UnregisterModel", edge.nothing),
            summary="Unregister a model",
            scope="admin",
            api="models",
        ),
    ]


def model_json(edge: Edge, model: v1.Model) -> dict[str, Any]:
    """A model with the fields that clients of Llama Stack 0.1 to 0.7, OGX and OpenAI read."""
    written = dict(edge.encode(model))
    created = written.pop("created") or 0
    return {
        "id": model.identifier,
        "object": "model",
        "created": created,
        "owned_by": model.provider_id or "llama_stack",
        **written,
        "custom_metadata": {
            "model_type": written["model_type"],
            "provider_id": model.provider_id,
            "provider_resource_id": model.provider_resource_id,
            **written["metadata"],
        },
    }
