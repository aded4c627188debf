"""Shields, running them, and moderation."""

from collections.abc import Mapping
from typing import Any

from llamastack import v1
from services.gateway.edge import Edge
from services.gateway.jsonmap.values import shown, wrong
from services.gateway.request import JsonReply, Reply, Request
from services.gateway.routes.fields import FieldReader
from services.gateway.routes.openai_schemas import MODERATION_REQUEST
from services.gateway.routing import OPENAI, Route
from services.gateway.upstream import Rpc
from stack_client.errors import InvalidArgumentError

MODERATE = Rpc("SafetyService.Moderate")


def routes(edge: Edge) -> list[Route]:
    """The rows."""
    return [*_shields(edge), *_safety(edge)]


def _shields(edge: Edge) -> list[Route]:
    shared: dict[str, Any] = {"api": "shields"}
    return [
        Route(
            method="GET",
            path="/shields",
            handler=edge.listing("ShieldsService.ListShields"),
            summary="List shields",
            response=v1.ListShieldsResponse,
            **shared,
        ),
        Route(
            method="GET",
            path="/shields/{identifier:path}",
            handler=edge.unary("ShieldsService.GetShield", edge.member("shield")),
            summary="Show a shield",
            response=v1.Shield,
            **shared,
        ),
        Route(
            method="POST",
            path="/shields",
            handler=edge.unary("ShieldsService.RegisterShield", edge.member("shield")),
            summary="Register a shield",
            scope="admin",
            request=v1.RegisterShieldRequest,
            response=v1.Shield,
            **shared,
        ),
        Route(
            method="DELETE",
            path="/shields/{identifier:path}",
            handler=edge.unary("ShieldsService.UnregisterShield", edge.nothing),
            summary="Unregister a shield",
            scope="admin",
            **shared,
        ),
    ]


def _safety(edge: Edge) -> list[Route]:
    async def moderate(request: Request) -> Reply:
        fields = FieldReader(request.json())
        message = v1.ModerateRequest(input=_inputs(fields.take("input")))
        model = fields.text("model")
        if model:
            message.model = model
        fields.finish()
        response = await edge.upstream.unary(MODERATE, message, request=request)
        written = edge.encode(response)
        return JsonReply(value={**written, "results": [_with_openai_names(one) for one in written["results"]]})

    return [
        Route(
            method="POST",
            path="/safety/run-shield",
            handler=edge.unary("SafetyService.RunShield", edge.whole),
            api="safety",
            summary="Judge messages with a shield",
            scope="safety",
            request=v1.RunShieldRequest,
            response=v1.RunShieldResponse,
        ),
        Route(
            method="POST",
            path="/safety/run-shields",
            handler=edge.unary("SafetyService.RunShields", edge.whole),
            api="safety",
            summary="Judge messages with several shields",
            scope="safety",
            request=v1.RunShieldsRequest,
            response=v1.RunShieldsResponse,
        ),
        Route(
            method="POST",
            path="/moderations",
            handler=moderate,
            mounts=OPENAI,
            api="safety",
            summary="Say what is harmful in texts",
            scope="safety",
            request=MODERATION_REQUEST,
            response=v1.ModerateResponse,
        ),
    ]


def _with_openai_names(result: dict[str, Any]) -> dict[str, Any]:
    """A result with OpenAI's categories beside ours: its SDK has an attribute for each and leaves none out."""
    found, scores = dict(result["categories"]), dict(result["category_scores"])
    kinds = dict(result["category_applied_input_types"])
    for name, hazards in _OPENAI_CATEGORIES.items():
        flagged = found.setdefault(name, any(found.get(hazard) for hazard in hazards))
        # A guard that only says yes or no is as sure as it can say.
        scores.setdefault(name, max((scores[one] for one in hazards if one in scores), default=float(flagged)))
        kinds.setdefault(name, ["text"])
    return {**result, "categories": found, "category_scores": scores, "category_applied_input_types": kinds}


_OPENAI_CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "harassment": (),
    "harassment/threatening": (),
    "hate": ("Hate",),
    "hate/threatening": (),
    "illicit": ("Non-Violent Crimes", "Violent Crimes", "Indiscriminate Weapons"),
    "illicit/violent": ("Violent Crimes", "Indiscriminate Weapons"),
    "self-harm": ("Self-Harm",),
    "self-harm/instructions": (),
    "self-harm/intent": (),
    "sexual": ("Sexual Content", "Sex Crimes", "Child Exploitation"),
    "sexual/minors": ("Child Exploitation",),
    "violence": ("Violent Crimes",),
    "violence/graphic": (),
}
"""Our hazards that mean one of OpenAI's categories."""


def _inputs(given: Any) -> list[str]:  # noqa: ANN401
    """A text, texts, or OpenAI's parts of text.

    Raises:
        InvalidArgumentError: Something else, images among it.
    """
    if given is None:
        raise InvalidArgumentError("input: missing", field="input", reason="MISSING_FIELD")
    entries = given if isinstance(given, list) else [given]
    if not entries:
        raise InvalidArgumentError("input: empty; give at least one text", field="input")
    texts = []
    for index, entry in enumerate(entries):
        path = f"input[{index}]" if isinstance(given, list) else "input"
        if isinstance(entry, dict):
            part = FieldReader(entry, path=path)
            kind = part.text("type", required=True)
            if kind != "text":
                raise InvalidArgumentError(f"{path}.type: {shown(kind)} cannot be judged; send text", field=path)
            texts.append(part.text("text", required=True))
            part.finish()
        elif isinstance(entry, str):
            texts.append(entry)
        else:
            raise wrong(path, "a text", entry)
    return texts
