"""Our client as the official conformance suite starts it, with the address of its server as the last argument."""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from llamastack import v1
from services.tools.provider import Access
from services.tools.providers.model_context_protocol import ModelContextProtocol
from tests.tools.mcp.worlds import call, group, plain, provider

SAMPLES = {"number": 3, "integer": 3, "string": "text", "boolean": True, "array": [], "object": {}}


def arguments_of(tool: v1.ToolDef, schemas: dict[str, Any]) -> dict[str, Any]:
    """Something for each required argument."""
    schema = plain(tool.input_schema)
    if "schema" in schema.get("properties", {}):
        return {"schema": schemas["json_schema_2020_12_tool"]}
    properties = schema.get("properties", {})
    return {name: SAMPLES.get(properties.get(name, {}).get("type"), "text") for name in schema.get("required", ())}


def planned(tools: list[v1.ToolDef], context: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    if "toolCalls" in context:
        for one in context["toolCalls"]:
            yield one["name"], one["arguments"], "tools/call"
        return
    schemas = {tool.name: plain(tool.input_schema) for tool in tools}
    for tool in tools:
        yield tool.name, arguments_of(tool, schemas), plain(tool.metadata)["mcp_method"]


@dataclass(frozen=True)
class Client:
    """Our client and one server."""

    mcp: ModelContextProtocol
    url: str
    access: Access

    async def run(self, context: dict[str, Any]) -> None:
        """List, and call everything."""
        tools = list(await self.mcp.list_tools(group(self.url), self.access))
        async with asyncio.TaskGroup() as calls:
            for name, arguments, method in planned(tools, context):
                calls.create_task(self.call(name, arguments, method))

    async def call(self, name: str, arguments: dict[str, Any], method: str) -> None:
        """Call a tool, and answer what it asks."""
        result = await self.mcp.invoke(call(self.url, name, arguments, access=self.access, method=method))
        while result.HasField("input_required"):
            answer = v1.ToolInputResponse(action="accept", state=result.input_required.state)
            asked = plain(result.input_required.requested_schema).get("properties", {})
            answer.content.update({key: one.get("default", SAMPLES.get(one.get("type"))) for key, one in asked.items()})
            again = call(self.url, name, arguments, access=self.access, method=method, response=answer)
            result = await self.mcp.invoke(again)


async def access_of(context: dict[str, Any], url: str) -> Access:
    """The suite gives a client's secret; where it is to be used an operator would know, here the server is asked."""
    if "client_secret" not in context:
        return Access()
    place = urlsplit(url)
    async with httpx2.AsyncClient() as http:
        found = await http.get(f"{place.scheme}://{place.netloc}/.well-known/oauth-protected-resource{place.path}")
    secret = {key: context[key] for key in ("client_id", "client_secret")}
    return Access(secret={**secret, "issuer": found.json()["authorization_servers"][0]})


async def main() -> None:
    url = sys.argv[-1]
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    with tempfile.TemporaryDirectory() as folder:
        async with provider(Path(folder), allow=("localhost", "127.0.0.1")) as mcp:
            await Client(mcp, url, await access_of(context, url)).run(context)


if __name__ == "__main__":
    asyncio.run(main())
