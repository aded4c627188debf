"""The providers of tools, by the id under which groups name them."""

from collections.abc import Callable

from services.tools.interpreter.provider import CodeInterpreter
from services.tools.provider import ProviderContext, ToolProvider
from services.tools.providers.model_context_protocol import ModelContextProtocol
from services.tools.providers.openapi import OpenApiProvider
from services.tools.providers.python_functions import PythonProvider
from services.tools.providers.rag import RagProvider
from services.tools.providers.remember import RememberProvider
from services.tools.providers.websearch.engines import WEB_SEARCH
from services.tools.providers.websearch.recorded import RecordedProvider
from services.tools.providers.wolfram_alpha import WolframAlphaProvider

PROVIDERS: dict[str, Callable[[ProviderContext], ToolProvider]] = {
    **WEB_SEARCH,
    "agent-memory": RememberProvider,
    "code-interpreter": CodeInterpreter,
    "model-context-protocol": ModelContextProtocol,
    "openapi": OpenApiProvider,
    "python": PythonProvider,
    "rag-runtime": RagProvider,
    "recorded": RecordedProvider,
    "wolfram-alpha": WolframAlphaProvider,
}
"""Builders by provider id."""

BUILTIN_GROUPS: dict[str, str] = {
    "builtin::code_interpreter": "code-interpreter",
    "builtin::memory": "agent-memory",
    "builtin::rag": "rag-runtime",
    "builtin::websearch": "recorded",
    "builtin::wolfram_alpha": "wolfram-alpha",
}
"""Provider by identifier of the groups that are there for every tenant without any configuration."""
