"""The shields that this version has, by the provider's id."""

from collections.abc import Callable, Mapping

from services.safety.providers.embedded import EmbeddedProvider
from services.safety.providers.rules import RulesProvider
from services.safety.shield import ProviderContext, ShieldProvider

PROVIDERS: Mapping[str, Callable[[ProviderContext], ShieldProvider]] = {
    "embedded": EmbeddedProvider,
    "rules": RulesProvider,
}
"""Builders by provider id, as `ProviderContext -> ShieldProvider`."""
