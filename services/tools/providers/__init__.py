"""The providers of tools, by the id under which groups name them."""

from collections.abc import Callable

from services.tools.provider import ProviderContext, ToolProvider
from services.tools.providers.model_context_protocol import PROVIDER_ID, ModelContextProtocol

PROVIDERS: dict[str, Callable[[ProviderContext], ToolProvider]] = {PROVIDER_ID: ModelContextProtocol}
