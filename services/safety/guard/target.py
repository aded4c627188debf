"""How a registered Llama Guard is asked: as which version, with whose template, by tokens or by text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format

from llamastack import v1
from services.safety import params as read
from services.safety.guard.asking import ChatRoute, Route, TokenRoute
from services.safety.guard.categories import (
    CategorySet,
    Custom,
    category_set,
    check_codes,
    profile_named,
    read_custom,
)
from services.safety.guard.model import GuardModel
from services.safety.guard.profiles import PROFILES, Profile
from services.safety.guards import Guards
from stack_client.errors import InvalidArgumentError

DEFAULT_PROFILE = "llama-guard-3-8b"
"""Assumed of models that have no checkpoint here to look at: scripted ones and those of endpoints."""
DEFAULT_CONTEXT = 8192
"""Context in tokens assumed of models that do not state theirs."""
PACKAGED = "packaged:"
_KNOWN = ("profile", "template", "excluded_categories", "categories", "max_tokens", "test_only")


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """A shield's parameters, read."""

    profile: str
    template: str
    excluded: tuple[str, ...]
    custom: Mapping[str, Custom]
    max_tokens: int
    test_only: bool


@dataclass(frozen=True, kw_only=True)
class Target:
    """How a model that is ready is asked."""

    model: GuardModel
    categories: CategorySet
    route: Route
    model_hash: str


def read_settings(params: Mapping[str, Any]) -> GuardSettings:
    """The shield's parameters.

    Raises:
        InvalidArgumentError: If one is unknown or cannot be used.
    """
    read.refuse_unknown(params, _KNOWN)
    profile = read.choice(params, "profile", PROFILES, default="")
    excluded, custom = read.texts(params, "excluded_categories"), read_custom(params)
    check_codes(excluded, custom, PROFILES.get(profile))
    return GuardSettings(
        profile=profile,
        template=read.choice(params, "template", ("auto", "checkpoint", "builtin"), default="auto"),
        excluded=excluded,
        custom=custom,
        max_tokens=read.whole(params, "max_tokens", default=50, low=4, high=100),
        test_only=read.flag(params, "test_only"),
    )


def check_model(model: v1.Model, settings: GuardSettings) -> None:
    """Refuse models that cannot be guards.

    Raises:
        InvalidArgumentError: If the model writes no text, or is one of the packaged ones.
    """
    if model.model_type not in {v1.MODEL_TYPE_LLM, v1.MODEL_TYPE_UNSPECIFIED}:
        raise InvalidArgumentError(
            f"model {model.identifier!r} writes no text; a Llama Guard is a text model", field="provider_shield_id"
        )
    if model.provider_resource_id.startswith(PACKAGED) and not settings.test_only:
        message = (
            f"params.test_only: model {model.identifier!r} is packaged and no guard: its verdicts mean nothing; "
            "register a Llama Guard checkpoint, or set test_only to try the path"
        )
        raise InvalidArgumentError(message, field="params.test_only")


def target_of(model: v1.Model, settings: GuardSettings, guards: Guards) -> Target:
    """How a model that is ready is asked.

    Raises:
        InvalidArgumentError: If its version is not known, or a parameter does not fit it.
    """
    facts = json_format.MessageToDict(model.metadata)
    profile = _profile(model, settings, str(facts.get("guard_template", "")))
    categories = category_set(profile, excluded=settings.excluded, custom=settings.custom)
    asked = GuardModel(guards, model.identifier)
    route: Route
    if model.provider_id in {"scripted", "openai"}:
        remote = model.provider_id == "openai"
        by_endpoint = settings.template == "checkpoint" or (settings.template == "auto" and remote)
        if by_endpoint and settings.custom:
            raise read.refusal(
                "categories", "cannot be added: the endpoint's own template writes them; set template: builtin"
            )
        route = ChatRoute(
            asked,
            categories,
            endpoint_template=by_endpoint,
            with_logprobs=remote,
            context=int(facts.get("context_length", 0)) or DEFAULT_CONTEXT,
            max_tokens=settings.max_tokens,
        )
    else:
        checkpoint = _uses_checkpoint(categories, settings, template=str(facts.get("guard_template", "")))
        route = TokenRoute(asked, categories, checkpoint=checkpoint, max_tokens=settings.max_tokens)
    return Target(
        model=asked,
        categories=categories,
        route=route,
        model_hash=str(facts.get("weights_hash", "")).removeprefix("sha256:"),
    )


def _profile(model: v1.Model, settings: GuardSettings, template: str) -> Profile:
    assumed = DEFAULT_PROFILE if model.provider_id in {"scripted", "openai"} else ""
    name = settings.profile or template or assumed
    if not name:
        message = (
            f"is unset and model {model.identifier!r} has no Llama Guard template; known are {', '.join(PROFILES)}"
        )
        raise read.refusal("profile", message)
    return profile_named(name)


def _uses_checkpoint(categories: CategorySet, settings: GuardSettings, *, template: str) -> bool:
    """Whether the checkpoint's own template can write the prompt that the shield wants."""
    fits = categories.is_default or categories.profile.template_arguments
    usable = template == categories.profile.name and fits
    if settings.template == "checkpoint" and not usable:
        message = (
            "is checkpoint, but the model's template is of another version or has fixed categories; leave it at auto"
        )
        raise read.refusal("template", message)
    return usable and settings.template != "builtin"
