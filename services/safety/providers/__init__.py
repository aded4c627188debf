"""The shields that this version has, by the provider's id."""

from collections.abc import Callable, Mapping

from services.safety.providers.code_scanner import CodeScannerProvider
from services.safety.providers.embedded import EmbeddedProvider
from services.safety.providers.llama_guard import LlamaGuardProvider
from services.safety.providers.moderation_api import ModerationApiProvider
from services.safety.providers.pii import PiiProvider
from services.safety.providers.prompt_guard import PromptGuardProvider
from services.safety.providers.rules import RulesProvider
from services.safety.shield import ProviderContext, ShieldProvider

PROVIDERS: Mapping[str, Callable[[ProviderContext], ShieldProvider]] = {
    "code-scanner": CodeScannerProvider,
    "embedded": EmbeddedProvider,
    "llama-guard": LlamaGuardProvider,
    "moderation-api": ModerationApiProvider,
    "pii": PiiProvider,
    "prompt-guard": PromptGuardProvider,
    "rules": RulesProvider,
}
"""Builders by provider id, as `ProviderContext -> ShieldProvider`."""
