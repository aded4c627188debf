"""Our MCP server against the SDK's client, in all three revisions, over the whole tools service."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import mcp_types as types
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from llamastack import v1
from services.runtime.reader import ConfigError
from tests.tools.mcp.servers import MODERN, REVISIONS, Peer, serving
from tests.tools.mcp.worlds import until
from tests.tools.mesh import SHOP, ToolsMesh, tools_mesh

KEY, OTHER = "key-of-tenant-a-0123456789", "key-of-tenant-b-0123456789"


class Older(httpx2.AsyncHTTPTransport):
    """Makes the SDK's client offer an older revision, as clients of that time do."""

    def __init__(self, revision: str) -> None:
        super().__init__()
        self.revision = revision

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()
        if b'"initialize"' in body:
            body = body.replace(b"2025-11-25", self.revision.encode())
        request = httpx2.Request(request.method, request.url, headers=request.headers, content=body)
        return await super().handle_async_request(request)


@asynccontextmanager
async def connected(url: str, revision: str = MODERN, *, key: str = "", **more: Any) -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(transport=Older(revision), headers=headers, timeout=30) as http:
        transport = streamable_http_client(url, http_client=http)
        async with Client(transport, mode="auto" if revision == MODERN else "legacy", cache=None, **more) as client:
            assert client.protocol_version == revision
            yield client


@pytest.fixture(params=REVISIONS)
def revision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def served(home: Path) -> AsyncIterator[ToolsMesh]:
    async with tools_mesh(home, mcp_port=0) as mesh:
        await mesh.register(SHOP)
        yield mesh


def said(result: types.CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, types.TextContent))


async def test_a_group_is_listed_and_called_at_its_own_address(served: ToolsMesh, revision: str) -> None:
    async with connected(f"{served.node.mcp_url}/{SHOP}", revision) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"read", "put", "write"}
        assert tools["read"].annotations is not None
        assert tools["read"].annotations.read_only_hint is True
        assert tools["read"].input_schema["required"] == ["do"]
        result = await client.call_tool("read", {"do": "say", "text": "hello"})
        assert (said(result), result.is_error) == ("hello", False)


async def test_all_groups_are_served_together_under_joint_names(served: ToolsMesh, revision: str) -> None:
    async with connected(served.node.mcp_url, revision) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert "test_shop__read" in names
        assert said(await client.call_tool("test_shop__read", {"do": "say", "text": "x"})) == "x"
        assert said(await client.call_tool("test::shop/read", {"do": "say", "text": "y"})) == "y"


async def test_a_failing_call_is_a_result_that_says_so(served: ToolsMesh, revision: str) -> None:
    async with connected(f"{served.node.mcp_url}/{SHOP}", revision) as client:
        result = await client.call_tool("read", {"do": "fail", "text": "that"})
        assert (said(result), result.is_error) == ("cannot do that", True)
        wrong = await client.call_tool("read", {"do": "no such"})
        assert wrong.is_error
        away = await client.call_tool("read", {"do": "away"})
        assert (away.is_error, "does not answer" in said(away)) == (True, True)
        with pytest.raises(MCPError, match="no tool 'none'"):
            await client.call_tool("none", {})


async def test_progress_goes_to_the_client_while_the_tool_runs(served: ToolsMesh, revision: str) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    async with connected(f"{served.node.mcp_url}/{SHOP}", revision) as client:
        await client.call_tool("read", {"do": "work"}, progress_callback=progress)
        await until(lambda: heard)
        assert heard == [(0.5, 1.0, "half")]


async def test_output_goes_to_a_client_that_wants_log_messages(served: ToolsMesh, revision: str) -> None:
    heard: list[Any] = []

    async def log(params: types.LoggingMessageNotificationParams) -> None:
        heard.append((params.logger, params.data))

    url = f"{served.node.mcp_url}/{SHOP}"
    async with connected(url, revision, logging_callback=log, log_level="info") as client:
        await client.call_tool("read", {"do": "work", "text": "out"})
        await until(lambda: heard)
        assert heard == [("stdout", "out\n")]


async def test_a_cancelled_request_stops_the_tool(served: ToolsMesh, revision: str) -> None:
    async with connected(f"{served.node.mcp_url}/{SHOP}", revision) as client:
        running = asyncio.create_task(client.call_tool("read", {"do": "wait"}))
        await served.shop.begun.acquire()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: served.shop.stopped == 1)


async def test_a_question_of_a_tool_is_put_to_the_clients_user(served: ToolsMesh, revision: str) -> None:
    asked: list[str] = []

    async def answer(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"size": "large"})

    url = f"{served.node.mcp_url}/{SHOP}"
    async with connected(url, revision, elicitation_callback=answer) as client:
        result = await client.call_tool("read", {"do": "ask"})
        assert asked
        assert said(result) == "accept"
    async with connected(url, revision) as client:
        if revision == MODERN:
            with pytest.raises(MCPError, match="cannot ask") as caught:
                await client.call_tool("read", {"do": "ask"})
            assert caught.value.data == {"requiredCapabilities": {"elicitation": {"form": {}}}}
        else:
            result = await client.call_tool("read", {"do": "ask"})
            assert (result.is_error, "cannot ask" in said(result)) == (True, True)


async def test_a_tool_that_needs_an_approval_says_so(served: ToolsMesh, revision: str) -> None:
    settings = v1.ToolGroupSettings(approval=v1.TOOL_APPROVAL_ALWAYS)
    await served.register("test::guarded", settings=settings)
    async with connected(f"{served.node.mcp_url}/test::guarded", revision) as client:
        result = await client.call_tool("read", {"do": "say", "text": "x"})
        assert (result.is_error, "approval of a person" in said(result)) == (True, True)


async def test_clients_hear_of_new_groups(served: ToolsMesh, revision: str) -> None:
    heard = asyncio.Event()

    async def message(message: Any) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            heard.set()

    async with connected(served.node.mcp_url, revision, message_handler=message) as client, asyncio.timeout(20):
        before = len((await client.list_tools()).tools)
        number = 0

        async def change() -> None:
            nonlocal number
            while not heard.is_set():  # an old client's stream may open later than its first list
                number += 1
                await served.register(f"test::more{number}")
                await asyncio.sleep(0.05)

        if revision == MODERN:
            async with client.listen(tools_list_changed=True) as changes:
                await served.register("test::more")
                async for _ in changes:
                    break
        else:
            await change()
        assert len((await client.list_tools()).tools) > before


async def test_a_group_that_is_not_there_is_named(served: ToolsMesh, revision: str) -> None:
    async with connected(f"{served.node.mcp_url}/none", revision) as client:
        with pytest.raises(MCPError, match="none"):
            await client.list_tools()


async def test_the_same_key_runs_a_tool_once(served: ToolsMesh, revision: str) -> None:
    async with connected(f"{served.node.mcp_url}/{SHOP}", revision) as client:
        meta: Any = {"llamastack.mesh/idempotency-key": "once"}
        for _ in range(2):
            result = await client.call_tool("write", {"do": "say", "text": "x"}, meta=meta)
            assert said(result) == "x"
        assert len(served.shop.ran) == 1


async def test_a_key_opens_the_tools_of_its_tenant_only(
    home: Path, revision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{OTHER}\n")
    monkeypatch.setitem(os.environ, "KEY_OF_A", KEY)
    keys = {"a": {"env": "KEY_OF_A"}, "b": {"file": str(file)}}
    async with tools_mesh(home, mcp_port=0, mcp_keys=keys) as mesh:
        await mesh.register("test::mine", tenant="a")
        async with connected(mesh.node.mcp_url, revision, key=KEY) as client:
            assert "test_mine__read" in [tool.name for tool in (await client.list_tools()).tools]
        async with connected(mesh.node.mcp_url, revision, key=OTHER) as client:
            assert "test_mine__read" not in [tool.name for tool in (await client.list_tools()).tools]
        async with httpx2.AsyncClient() as http:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}):
                response = await http.post(mesh.node.mcp_url, headers=headers, json={})
                assert (response.status_code, response.headers["www-authenticate"]) == (401, 'Bearer realm="mcp"')


async def test_a_session_is_not_used_with_the_key_of_another(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "STACK_TOOLS_MCP_KEYS", f"a={KEY} b={OTHER}")
    async with tools_mesh(home, mcp_port=0) as mesh, httpx2.AsyncClient() as http:
        begin = {
            "jsonrpc": "2.0", "id": 1, "method": "initialize",
            "params": {
                "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"},
            },
        }  # fmt: skip
        accept = {"accept": "application/json, text/event-stream"}
        first = {**accept, "authorization": f"Bearer {KEY}"}
        opened = await http.post(mesh.node.mcp_url, headers=first, json=begin)
        session = {"mcp-session-id": opened.headers["mcp-session-id"]}
        listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        mine = await http.post(mesh.node.mcp_url, headers={**first, **session}, json=listing)
        theirs = {**accept, **session, "authorization": f"Bearer {OTHER}"}
        foreign = await http.post(mesh.node.mcp_url, headers=theirs, json=listing)
        assert (mine.status_code, foreign.status_code) == (200, 404)


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "https://evil.example"}])
async def test_pages_of_other_sites_cannot_reach_the_server(served: ToolsMesh, headers: dict[str, str]) -> None:
    modern = {"mcp-protocol-version": MODERN, "accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient() as http:
        for more in ({}, modern):
            response = await http.post(served.node.mcp_url, headers={**more, **headers}, json={})
            assert response.status_code in {403, 421}


async def test_an_open_server_for_other_machines_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"tools\.mcp_keys"):
        async with tools_mesh(home, mcp_port=0, mcp_host="0.0.0.0"):
            pass


async def test_a_server_of_others_is_served_on_with_images_and_facts(home: Path, revision: str) -> None:
    """Our client and our server in one path: MCP client, our server, our client, another server."""
    async with (
        serving(Peer(), revision=revision) as url,
        tools_mesh(home, mcp_port=0, egress_allow=["127.0.0.1"]) as mesh,
    ):
        group = await mesh.register("mcp::peer", provider_id="model-context-protocol", mcp_endpoint=v1.URL(uri=url))
        assert group.provider_id == "model-context-protocol"
        assert (await mesh.invoke("mcp::peer/echo", kwargs_json='{"text": "over gRPC"}')).content.items[
            0
        ].text == "over gRPC"
        unregistered = v1.ListRuntimeToolsRequest(mcp_endpoint=v1.URL(uri=url))
        assert "echo" in [tool.name for tool in (await mesh.runtime.ListRuntimeTools(unregistered)).data]
        async with connected(f"{mesh.node.mcp_url}/mcp::peer", revision) as client:
            image = (await client.call_tool("image", {})).content[0]
            assert isinstance(image, types.ImageContent)
            assert image.mime_type == "image/png"
            assert (await client.call_tool("structured", {})).structured_content == {"n": 7}
            files = (await client.call_tool("files", {})).content
            assert [one.mime_type for one in files if isinstance(one, types.AudioContent)] == ["audio/wav"]
            blobs = [one.resource.mime_type for one in files if isinstance(one, types.EmbeddedResource)]
            assert blobs == ["application/x-test"]
