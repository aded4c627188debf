"""What callers bring for one call: keys of providers and headers for MCP servers."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from llamastack import v1
from services.runtime.calls import PROVIDER_DATA
from stack_client.calls import unary
from stack_client.content import struct, text_of
from stack_client.errors import AuthenticationError, InvalidArgumentError
from tests.tools.mcp.servers import REVISIONS, Peer, serving
from tests.tools.mesh import ToolsMesh, tools_mesh
from tests.tools.web import Asked, Reply, as_json, web

KEY = "the-key-of-a-caller"


def tattle(asked: Asked) -> Reply:
    """An engine that answers with the key that it was shown."""
    return as_json({"results": [{"title": asked.headers["authorization"], "url": "u", "content": "c"}]})


def bringing(**data: Any) -> grpc.aio.Metadata:
    return grpc.aio.Metadata((PROVIDER_DATA, json.dumps(data)))


async def invoke(
    mesh: ToolsMesh, tool: str, arguments: dict[str, Any], *, metadata: grpc.aio.Metadata | None = None
) -> v1.ToolInvocationResult:
    request = v1.InvokeToolRequest(tool_name=tool, kwargs=struct(arguments))
    result: v1.ToolInvocationResult = (await unary(mesh.runtime.InvokeTool(request, metadata=metadata))).result
    return result


async def test_a_key_of_the_caller_takes_the_place_of_the_configured_one(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_SEARCH_KEY", "the-key-of-the-operator")
    async with web(tattle) as server:
        config: dict[str, Any] = {
            "toolgroups": [
                {"identifier": "search", "provider_id": "tavily-search", "settings": {"secrets_ref": "search"}}
            ],
            "providers": {"tavily-search": {"base_url": server.url}},
            "egress_allow": ["127.0.0.1/32"],
            "secrets": {"search": {"values": {"api_key": {"env": "TEST_SEARCH_KEY"}}}},
        }
        async with tools_mesh(home, **config) as mesh:
            own = await invoke(mesh, "search/web_search", {"query": "a"}, metadata=bringing(tavily_search_api_key=KEY))
            await invoke(mesh, "search/web_search", {"query": "b"})
            await invoke(mesh, "search/web_search", {"query": "c"}, metadata=bringing(brave_search_api_key="another"))
        shown = [one.headers["authorization"] for one in server.asked]
        assert shown == [f"Bearer {KEY}", *["Bearer the-key-of-the-operator"] * 2]
        assert "[secret]" in text_of(own.content)
    for file in home.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file


async def test_wolfram_alpha_is_asked_with_the_key_of_the_caller(home: Path) -> None:
    async with web(lambda _: (200, {}, b"forty-two")) as server:
        config: dict[str, Any] = {
            "providers": {"wolfram-alpha": {"base_url": server.url}},
            "egress_allow": ["127.0.0.1/32"],
        }
        async with tools_mesh(home, **config) as mesh:
            tool, question = "builtin::wolfram_alpha/wolfram_alpha", {"query": "6 * 7"}
            answer = await invoke(mesh, tool, question, metadata=bringing(wolfram_alpha_api_key=KEY))
            assert text_of(answer.content) == "forty-two"
            assert "computed locally" in text_of((await invoke(mesh, tool, question)).content)
        assert f"appid={KEY}" in server.asked[0].target


async def test_headers_go_to_the_mcp_server_of_their_host_and_path_only(home: Path) -> None:
    peer = Peer()
    async with (
        serving(peer, revision=REVISIONS[0]) as url,
        tools_mesh(home, egress_allow=["127.0.0.1"]) as mesh,
    ):
        await mesh.register("mcp::peer", provider_id="model-context-protocol", mcp_endpoint=v1.URL(uri=url))
        peer.headers.clear()
        tool, arguments = "mcp::peer/echo", {"text": "x"}
        mine = {f"{url}?tenant=a": {"Authorization": f"Bearer {KEY}", "X-Team": "a"}}
        await invoke(mesh, tool, arguments, metadata=bringing(mcp_headers=mine))
        assert {(one.get("authorization"), one.get("x-team")) for one in peer.headers} == {(f"Bearer {KEY}", "a")}
        seen = len(peer.headers)
        others = {f"{url}/deeper": {"X-Team": "b"}, "http://127.0.0.1:1/mcp": {"X-Team": "c"}, "no url": {}}
        await invoke(mesh, tool, arguments, metadata=bringing(mcp_headers=others))
        assert peer.headers[seen:]
        # The first connection may still say good-bye with its own headers.
        assert not {"b", "c"} & {one.get("x-team") for one in peer.headers[seen:]}


async def test_a_list_made_with_headers_of_one_caller_is_not_shown_to_another(home: Path) -> None:
    peer = Peer()
    async with (
        serving(peer, revision=REVISIONS[0], key="right") as url,
        tools_mesh(home, egress_allow=["127.0.0.1"]) as mesh,
    ):
        right = bringing(mcp_headers={url: {"Authorization": "Bearer right"}})
        register = v1.RegisterToolGroupRequest(
            toolgroup_id="mcp::locked", provider_id="model-context-protocol", mcp_endpoint=v1.URL(uri=url)
        )
        await unary(mesh.groups.RegisterToolGroup(register, metadata=right))
        answer = await invoke(mesh, "mcp::locked/echo", {"text": "in"}, metadata=right)
        assert text_of(answer.content) == "in"
        request = v1.ListRuntimeToolsRequest(tool_group_id="mcp::locked")
        assert (await unary(mesh.runtime.ListRuntimeTools(request, metadata=right))).data
        with pytest.raises(AuthenticationError):
            await unary(mesh.runtime.ListRuntimeTools(request))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("[]", "JSON object"),
        ("{", "JSON object"),
        ('{"tavily_search_api_key": 7}', "tavily_search_api_key"),
        ('{"tavily_search_api_key": "a\\nb"}', "tavily_search_api_key"),
    ],
)
async def test_provider_data_of_another_shape_are_refused(home: Path, data: str, words: str) -> None:
    config: dict[str, Any] = {"toolgroups": [{"identifier": "search", "provider_id": "tavily-search"}]}
    async with tools_mesh(home, **config) as mesh:
        with pytest.raises(InvalidArgumentError, match=words) as caught:
            await invoke(mesh, "search/web_search", {"query": "a"}, metadata=grpc.aio.Metadata((PROVIDER_DATA, data)))
        assert caught.value.field == PROVIDER_DATA
