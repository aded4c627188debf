"""Wolfram Alpha's API for language models; without a key exact arithmetic on this machine, which says that it is."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urlencode, urlsplit

from llamastack import v1
from services.runtime.config import read_config
from services.tools.outgoing import Outgoing
from services.tools.provider import Access, Call, ProviderContext
from services.tools.providers.calculator.numbers import CalculationError
from services.tools.providers.calculator.reading import CAN, calculate
from services.tools.providers.plain import PlainProvider, answered, failed
from stack_client.content import struct

KEY = "api_key"
PATH = "/api/v1/llm-api"
TOOL = v1.ToolDef(
    name="wolfram_alpha",
    description="Calculates and looks up facts of mathematics, science, units and geography.",
    input_schema=struct(
        {
            "type": "object",
            "properties": {
                "query": {"type": "string", "minLength": 1, "description": "The question, for example 17% of 240."}
            },
            "required": ["query"],
        }
    ),
    effect=v1.TOOL_EFFECT_READ,
)


@dataclass(frozen=True, kw_only=True)
class WolframConfig:
    """Settings of the provider `wolfram-alpha`."""

    base_url: str = "https://www.wolframalpha.com"
    """Where its API is."""
    max_characters: int = 6800
    """Of an answer, as the API counts them."""


class WolframAlphaProvider(PlainProvider):
    """Answers with Wolfram Alpha where there is a key, else by itself.

    Args:
        context: Of the service.
    """

    def __init__(self, context: ProviderContext) -> None:
        file = context.service.config.file
        self._config = read_config(WolframConfig, context.config, file=file, at="tools.providers.wolfram-alpha")
        self._outgoing = Outgoing(context)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._outgoing.__aexit__(kind, error, traceback)

    async def list_tools(self, group: v1.ToolGroup, access: Access) -> Sequence[v1.ToolDef]:  # noqa: ARG002 (interface)
        """The one tool."""
        return [TOOL]

    async def invoke(self, call: Call) -> v1.ToolInvocationResult:
        """Answer a question."""
        query, key = str(call.arguments["query"]), call.access.secret.get(KEY, "")
        if not key:
            return await asyncio.to_thread(by_itself, query)
        base = self._config.base_url.rstrip("/")
        parameters = urlencode({"input": query, "maxchars": self._config.max_characters, "appid": key})
        answer = await self._outgoing.send(
            "GET",
            f"{base}{PATH}?{parameters}",
            hosts=call.group.settings.egress_hosts or [urlsplit(base).netloc],
            access=call.access,
            secrets_ref=call.group.settings.secrets_ref,
        )
        if answer.status == 200:
            return answered(answer.text, engine="wolfram-alpha")
        if answer.status == 501:  # not understood; says what might be meant
            return failed(f"Wolfram Alpha does not understand the question. {answer.text[:1000]}", code=501)
        if answer.status == 403:
            return failed("Wolfram Alpha refused the key; the operator must renew it.", code=403)
        return failed(f"Wolfram Alpha answered {answer.status}: {answer.text[:200]}", code=answer.status)


def by_itself(query: str) -> v1.ToolInvocationResult:
    """The answer of the local calculator."""
    try:
        text, exact = calculate(query)
    except CalculationError as error:
        return failed(
            f"The local calculator cannot work out {query[:200]!r}: {error}. This stack has no key for Wolfram Alpha "
            f"(tools.secrets.<name>.values.{KEY}); without one it can: {CAN}.",
            code=501,
            engine="local",
        )
    how = "exactly" if exact else "rounded"
    return answered(f"{query} = {text}\n(computed locally, {how}; not by Wolfram Alpha)", engine="local", exact=exact)
