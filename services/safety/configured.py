"""Shields of the configuration: the embedded baseline, and guards whose weights are named there."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import grpc
from google.protobuf import json_format

from llamastack import v1
from services.runtime.config import ConfigError
from services.safety.config import SafetyConfig, ShieldConfig
from services.safety.policy import SURFACES
from services.safety.registry import ShieldRegistry
from stack_client.calls import unary
from stack_client.errors import AlreadyExistsError, StackError, UnavailableError
from stack_client.safety import GUARD_PRESETS, guard_preset

logger = logging.getLogger(__name__)

BASELINE = "baseline"
RETRY_SECONDS = 1.0


async def add_configured(
    config: SafetyConfig, registry: ShieldRegistry, *, channel: grpc.aio.Channel
) -> list[Coroutine[Any, Any, None]]:
    """Add the shields that the configuration names; returns what is left to do while the service already serves.

    Raises:
        ConfigError: If a shield cannot be made.
    """
    if config.baseline and "embedded" in registry.providers:
        await registry.configure(_shield(BASELINE, "embedded", BASELINE, {"surfaces": list(SURFACES)}))
    waiting = []
    for name, entry in config.shields.items():
        settings = ShieldConfig(model=entry) if isinstance(entry, str) else entry
        provider, surfaces = guard_preset(name)
        provider = settings.provider or provider
        if not provider:
            presets = ", ".join(GUARD_PRESETS)
            message = f"safety.shields.{name}: provider is missing; only names that begin with {presets} imply one"
            raise ConfigError(message)
        params = {"surfaces": list(surfaces), **settings.params} if surfaces else dict(settings.params)
        # A path or hub id is loaded under the shield's name; a bare word names a model that is registered already.
        weights = settings.model if "/" in settings.model else ""
        shield = _shield(name, provider, name if weights else settings.model or name, params)
        try:
            await registry.configure(shield)
        except StackError as error:
            raise ConfigError(f"safety.shields.{name}: {error.message}") from error
        if weights:
            kind = v1.MODEL_TYPE_CLASSIFIER if shield.provider_id == "prompt-guard" else v1.MODEL_TYPE_LLM
            waiting.append(_load(channel, name, weights, kind))
    return waiting


def _shield(name: str, provider: str, model: str, params: dict[str, Any]) -> v1.Shield:
    shield = v1.Shield(
        identifier=name,
        provider_id=provider.rpartition("::")[2].replace("_", "-"),
        provider_resource_id=model,
        type=v1.RESOURCE_TYPE_SHIELD,
    )
    json_format.ParseDict(params, shield.params)
    return shield


async def _load(channel: grpc.aio.Channel, name: str, weights: str, kind: "v1.ModelType.ValueType") -> None:
    """Register a guard's weights with the inference service, as soon as that serves."""
    stub: Any = v1.ModelsServiceStub(channel)
    request = v1.RegisterModelRequest(model_id=name, provider_model_id=weights, provider_id="torch", model_type=kind)
    while True:
        try:
            await unary(stub.RegisterModel(request, timeout=30))
        except UnavailableError:
            await asyncio.sleep(RETRY_SECONDS)
            continue
        except AlreadyExistsError:
            logger.warning("model %s is registered with other weights; shield %s uses those", name, name)
        except StackError as error:
            logger.error("the weights of shield %s cannot be loaded, it blocks everything: %s", name, error.message)
        return
