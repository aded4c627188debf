"""Inference nodes with the models that guard shields ask, and shields of them without a safety service around."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from llamastack import v1
from services.safety.guards import Guards
from services.safety.providers import PROVIDERS
from services.safety.shield import Judgement, ProviderContext, Shield, Subject, Surface
from stack_client.content import MessageLike, messages, struct
from tests.inference.conftest import Node, running_node

SCRIPT = [
    {"match": r"User: .*(bomb|Mord)", "reply": "unsafe\nS1"},
    {"match": r"\nAgent: .*mix the powder", "reply": "\n\nunsafe\nS9, S1"},
    {"match": r"User: .*odd", "reply": "I cannot say"},
    {"match": r"User: .*elections", "reply": "unsafe\nS13"},
    {"match": r"User: .*wordless", "reply": "unsafe"},
    {"match": r"User: .*broken", "error": "the guard breaks here"},
    {"match": ".*", "reply": "safe"},
]
GUARD = {"model_id": "guard", "provider_id": "scripted", "metadata": {"script": SCRIPT}}


@asynccontextmanager
async def guarding(home: Path, *models: dict[str, Any], **providers: Any) -> AsyncIterator[tuple[Guards, Node]]:
    """An inference node with these models, as shields see it."""
    async with running_node(home, models or (GUARD,), **providers) as node:
        yield Guards(node.client.channel("inference"), seconds=20), node


async def shield_of(provider: str, guards: Any, model: str = "guard", **params: Any) -> Shield:
    """A shield that is registered nowhere."""
    context = ProviderContext(guards=guards)
    registered = v1.Shield(identifier="test", provider_id=provider, provider_resource_id=model)
    return await PROVIDERS[provider](context).create(registered, params)


async def judge(
    shield: Shield,
    text: str,
    *,
    surface: Surface = v1.SAFETY_SURFACE_USER,
    dialog: Sequence[MessageLike] = (),
    threshold: float | None = None,
    settled: int = 0,
) -> Judgement:
    """One judgement, with the shield's own threshold unless another is given."""
    limit = shield.default_threshold(surface) if threshold is None else threshold
    subject = Subject(text=text, surface=surface, dialog=messages(list(dialog)), threshold=limit, settled=settled)
    found = await shield.judge(subject)
    assert struct(found.metadata) is not None  # it can be carried
    assert 0 <= found.coverage <= 1
    assert (found.score is None) == bool(found.failure)
    return found


def fact(judgement: Judgement, key: str) -> Any:
    metadata: Mapping[str, Any] = judgement.metadata
    return metadata.get(key)
