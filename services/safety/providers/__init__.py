"""The shields that this version has, by the provider's id."""

from collections.abc import Callable, Mapping

from services.safety.shield import ProviderContext, ShieldProvider

PROVIDERS: Mapping[str, Callable[[ProviderContext], ShieldProvider]] = {}
"""Builders by provider id, as `ProviderContext -> ShieldProvider`."""
