"""Serves groups `http::*`: each operation of an OpenAPI document is a tool."""

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from google.protobuf import json_format

from llamastack import v1
from services.runtime.config import read_config
from services.runtime.offload import offload
from services.tools.outgoing import Outgoing
from services.tools.provider import Access, Call, ProviderContext
from services.tools.providers.openapi.document import Api, api_of, checked, load
from services.tools.providers.openapi.requests import request_of, result_of
from services.tools.providers.plain import PlainProvider
from stack_client.content import plain
from stack_client.errors import InvalidArgumentError, UnavailableError

logger = logging.getLogger(__name__)

DOCUMENT_BYTES = 4 << 20
KEPT = 256
"""Documents in memory."""
FETCHED_SECONDS = 300.0
"""For how long a document from a URL is taken for what is there."""


@dataclass(frozen=True, kw_only=True)
class OpenApiConfig:
    """Settings of the provider `openapi`."""

    max_bytes: int = 4 << 20
    """Of an answer; longer ones are cut."""


class OpenApiProvider(PlainProvider):
    """Calls HTTP APIs.

    Args:
        context: Of the service.
    """

    arguments = frozenset({"openapi", "server", "operations"})

    def __init__(self, context: ProviderContext) -> None:
        file = context.service.config.file
        self._config = read_config(OpenApiConfig, context.config, file=file, at="tools.providers.openapi")
        self._outgoing = Outgoing(context)
        self._apis: OrderedDict[tuple[str, bytes], tuple[float, Api]] = OrderedDict()

    async def __aenter__(self) -> Self:
        """Nothing is connected yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._outgoing.__aexit__(kind, error, traceback)

    async def check(self, group: v1.ToolGroup, access: Access) -> None:
        """Read the document.

        Raises:
            InvalidArgumentError: Naming what is wrong with it.
            UnavailableError: If it cannot be fetched now.
        """
        given = set(group.args.fields)
        api = await self._api(group, access)
        properties = {name for one in api.operations.values() for name in one.tool.input_schema["properties"]}  # type: ignore[union-attr] # ours
        unknown = sorted(given - self.arguments - properties)
        if unknown:
            message = f"args.{unknown[0]} is neither a setting ({', '.join(sorted(self.arguments))}) nor an argument"
            raise InvalidArgumentError(message, field=f"args.{unknown[0]}")
        if api.left_out:
            extra = {"group": group.identifier, "left_out": len(api.left_out), "first": api.left_out[0]}
            logger.warning("operations of a document cannot be tools", extra=extra)

    async def list_tools(self, group: v1.ToolGroup, access: Access) -> Sequence[v1.ToolDef]:
        """The operations."""
        return [one.tool for one in (await self._api(group, access)).operations.values()]

    async def invoke(self, call: Call) -> v1.ToolInvocationResult:
        """Send the request of an operation."""
        api = await self._api(call.group, call.access)
        operation = api.operations.get(call.tool.name)
        if operation is None:
            raise InvalidArgumentError(f"{call.tool.name} is not in the API's document any more; list the tools again")
        request = request_of(api, operation, call.arguments, access=call.access)
        if operation.tool.effect != v1.TOOL_EFFECT_READ:
            request.headers["Idempotency-Key"] = call.idempotency_key
        answer = await self._outgoing.send(
            operation.method,
            request.url,
            hosts=call.group.settings.egress_hosts or [urlsplit(api.server).netloc],
            access=call.access,
            secrets_ref=call.group.settings.secrets_ref,
            headers=request.headers,
            content=request.content,
            max_bytes=self._config.max_bytes,
        )
        return result_of(answer)

    async def removed(self, group: v1.ToolGroup, access: Access) -> None:
        """Forget the document."""
        self._apis.pop(_key(group, access), None)

    async def _api(self, group: v1.ToolGroup, access: Access) -> Api:
        key = _key(group, access)
        kept = self._apis.get(key)
        if kept is not None and time.monotonic() < kept[0]:
            self._apis.move_to_end(key)
            return kept[1]
        args: Mapping[str, Any] = plain(json_format.MessageToDict(group.args))
        try:
            api, seconds = await self._read(args, group, access)
        except UnavailableError:
            if kept is None:
                raise
            logger.warning("a document cannot be fetched again", extra={"group": group.identifier})
            api, seconds = kept[1], FETCHED_SECONDS
        self._apis[key] = (time.monotonic() + seconds, api)
        while len(self._apis) > KEPT:
            self._apis.popitem(last=False)
        return api

    async def _read(self, args: Mapping[str, Any], group: v1.ToolGroup, access: Access) -> tuple[Api, float]:
        """The document's API, and for how many seconds it holds."""
        given, server, chosen = args.get("openapi"), args.get("server", ""), args.get("operations", [])
        if not isinstance(server, str):
            raise InvalidArgumentError("args.server must be a URL", field="args.server")
        if not isinstance(chosen, list) or not all(isinstance(one, str) for one in chosen):
            raise InvalidArgumentError("args.operations must be a list of names", field="args.operations")
        source, seconds = "", float("inf")
        if isinstance(given, str):
            text = given
            if given.startswith(("http://", "https://")):
                source, seconds = given, FETCHED_SECONDS
                text = await self._fetch(given, group, access)
            document = await offload(len(text), load, text)
        elif isinstance(given, Mapping):
            document = checked(given)
        else:
            message = "args.openapi: give the OpenAPI document, as an object, as text, or by its URL"
            raise InvalidArgumentError(message, reason="MISSING_FIELD", field="args.openapi")
        try:
            return api_of(document, source=source, server=server, chosen=frozenset(chosen)), seconds
        except RecursionError:
            raise InvalidArgumentError("args.openapi is nested too deeply", field="args.openapi") from None
        except (AttributeError, TypeError, KeyError) as error:  # lists where objects belong, and the like
            message = f"args.openapi is not as OpenAPI says: {error!r}"
            raise InvalidArgumentError(message, field="args.openapi") from error

    async def _fetch(self, url: str, group: v1.ToolGroup, access: Access) -> str:
        place = urlsplit(url).netloc
        public = Access(tenant=access.tenant)  # a document is no place for credentials
        hosts = [*group.settings.egress_hosts, place]
        answer = await self._outgoing.send("GET", url, hosts=hosts, access=public, max_bytes=DOCUMENT_BYTES)
        if answer.status != 200:
            kind = UnavailableError if answer.status >= 500 else InvalidArgumentError
            raise kind(f"args.openapi: the server of the document answered {answer.status}", field="args.openapi")
        if answer.cut:
            raise InvalidArgumentError(f"args.openapi has over {DOCUMENT_BYTES} bytes", field="args.openapi")
        return answer.text


def _key(group: v1.ToolGroup, access: Access) -> tuple[str, bytes]:
    facts = group.args.SerializeToString(deterministic=True) + repr(list(group.settings.egress_hosts)).encode()
    return access.tenant, hashlib.sha256(facts).digest()
