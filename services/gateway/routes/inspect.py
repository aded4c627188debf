"""What this stack is and how it is doing: health, version, routes, providers."""

from collections.abc import Sequence
from typing import Any

from services.gateway.edge import Edge
from services.gateway.providers import Providers, provider_types
from services.gateway.request import JsonReply, Reply, Request
from services.gateway.routing import Route
from stack_client.errors import InvalidArgumentError, NotFoundError
from stack_client.version import version

LEVELS = ("v1", "v1alpha", "v1beta", "deprecated")
ADMIN = ("/v1", "/v1alpha/admin")
_DEPRECATED = "/v1/openai/v1"


def routes(edge: Edge, others: Sequence[Route]) -> list[Route]:
    """The rows.

    Args:
        edge: Channels and codec.
        others: The table; rows that are added to it afterwards, these among them, are listed too.
    """
    providers = Providers(edge)
    table: list[Route] = []

    async def health(request: Request) -> Reply:
        states = await providers.health(request)
        troubled = {name: message for name, message in states.items() if message}
        value: dict[str, Any] = {"status": "Error" if troubled else "OK"}
        if troubled:
            value["message"] = "; ".join(f"{name}: {message}" for name, message in sorted(troubled.items()))
        return JsonReply(value=value)

    async def tell_version(_request: Request) -> Reply:
        return JsonReply(value={"version": version()})

    async def listed(request: Request) -> Reply:
        wanted = request.query().get("api_filter")
        if wanted is not None and wanted not in LEVELS:
            raise InvalidArgumentError(f"api_filter: {wanted!r} is none of {', '.join(LEVELS)}", field="api_filter")
        return JsonReply(value={"data": route_list(others, wanted)})

    async def all_providers(request: Request) -> Reply:
        return JsonReply(value={"data": await providers.listed(request)})

    async def one_provider(request: Request) -> Reply:
        wanted = request.params["provider_id"]
        for one in await providers.listed(request):
            if one["provider_id"] == wanted:
                return JsonReply(value=one)
        raise NotFoundError(f'no provider "{wanted}"; /v1/providers lists them')

    rows: list[Any] = [
        ("/health", health, "inspect", "Whether the stack is well", "", {"type": "object", "required": ["status"]}),
        ("/version", tell_version, "inspect", "The version of the stack", "", {"type": "object"}),
        ("/inspect/routes", listed, "inspect", "List the routes", "read", {"type": "object"}),
        ("/providers", all_providers, "providers", "List the providers", "read", {"type": "object"}),
        ("/providers/{provider_id}", one_provider, "providers", "Show a provider", "read", {"type": "object"}),
    ]
    for path, handler, api, summary, scope, schema in rows:
        row = Route(
            method="GET",
            path=path,
            handler=handler,
            api=api,
            summary=summary,
            scope=scope,
            mounts=ADMIN,
            response=schema,
        )
        table.append(row)
    older = Route(
        method="GET",
        path="/inspect/providers",
        handler=all_providers,
        api="providers",
        summary="List the providers",
        response={"type": "object"},
    )
    table.append(older)
    return table


def route_list(table: Sequence[Route], level: str | None) -> list[dict[str, Any]]:
    """The routes as clients read them.

    Args:
        table: All rows.
        level: `v1`, `v1alpha`, `v1beta` or `deprecated`; None lists all but the deprecated ones.
    """
    found = []
    for route in table:
        for mount in route.mounts:
            old = mount in {_DEPRECATED, "/alpha"}
            if old != (level == "deprecated") or (level not in {None, "deprecated"} and mount.split("/")[1] != level):
                continue
            types = list(route.provider_types or provider_types(route.api))
            path = (mount + route.path).replace(":path}", "}")
            found.append({"route": path, "method": route.method, "provider_types": types})
    return sorted(found, key=lambda one: (one["route"], one["method"]))
