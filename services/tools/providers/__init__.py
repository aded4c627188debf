"""The providers of tools, by the id under which groups name them."""

from collections.abc import Callable

from services.tools.provider import ProviderContext, ToolProvider
from services.tools.providers.model_context_protocol import ModelContextProtocol
from services.tools.providers.python_functions import PythonProvider

PROVIDERS: dict[str, Callable[[ProviderContext], ToolProvider]] = {
    "model-context-protocol": ModelContextProtocol,
    "python": PythonProvider,
}
"""Builders by provider id."""

BUILTIN_GROUPS: dict[str, str] = {}
"""Provider by identifier of the groups that are there for every tenant without any configuration."""
