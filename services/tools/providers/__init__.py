"""The providers of tools, by the id under which groups name them."""

from collections.abc import Callable

from services.tools.provider import ProviderContext, ToolProvider

PROVIDERS: dict[str, Callable[[ProviderContext], ToolProvider]] = {}
