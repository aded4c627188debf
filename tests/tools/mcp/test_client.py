"""The client against real servers of all three revisions, behind HTTP and as programs."""

import asyncio
from pathlib import Path

import pytest

from llamastack import v1
from services.tools.provider import Access
from stack_client.errors import AuthenticationError
from tests.tools.mcp.servers import PIXEL, REVISIONS, Peer, serving
from tests.tools.mcp.worlds import Reported, call, calls, group, plain, pool, provider, text, until


@pytest.fixture(params=REVISIONS)
def revision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_tools_are_listed_and_called_in_every_revision(tmp_path: Path, revision: str) -> None:
    peer = Peer()
    async with serving(peer, revision=revision) as url, provider(tmp_path) as mcp:
        tools = {tool.name: tool for tool in await mcp.list_tools(group(url), Access())}
        assert {"echo", "read_resource", "list_resources", "get_prompt", "list_prompts"} <= set(tools)
        assert plain(tools["echo"].input_schema)["required"] == ["text"]
        result = await mcp.invoke(call(url, "echo", {"text": "hello"}))
        assert (text(result), result.error_code) == ("hello", 0)
        assert [one.version for one in pool(mcp)._open.values()] == [revision]


async def test_n_calls_make_one_list_request(tmp_path: Path, revision: str) -> None:
    peer = Peer()
    async with serving(peer, revision=revision) as url, provider(tmp_path) as mcp:
        for _ in range(5):
            await mcp.list_tools(group(url), Access())
            await mcp.invoke(call(url, "echo", {"text": "hello"}))
        assert (peer.requests["tools/list"], peer.requests["tools/call"]) == (1, 5)


async def test_a_change_of_the_tools_is_heard_and_the_list_made_anew(tmp_path: Path, revision: str) -> None:
    peer = Peer()
    async with serving(peer, revision=revision) as url, provider(tmp_path, list_seconds=3600.0) as mcp:
        await mcp.list_tools(group(url), Access())
        connection = next(iter(pool(mcp)._open.values()))
        await until(lambda: connection.watched)
        before = connection.list_changes
        peer.tools = peer.tools[:1]
        async with asyncio.timeout(20):
            while connection.list_changes == before:  # an old server's notice is lost before its stream is open
                await peer.change()
                await asyncio.sleep(0.02)
        names = [tool.name for tool in await mcp.list_tools(group(url), Access())]
        assert names[0] == "echo"
        assert "erase" not in names


async def test_cancelled_calls_leave_no_task_and_no_cpu(tmp_path: Path, revision: str) -> None:
    peer = Peer()
    async with serving(peer, revision=revision) as url, provider(tmp_path) as mcp:
        await mcp.invoke(call(url, "echo", {"text": "warm"}))
        await until(lambda: not pool(mcp)._open[next(iter(pool(mcp)._open))]._running)
        tasks = len(asyncio.all_tasks())
        for _ in range(3):
            peer.started.clear()
            running = asyncio.create_task(mcp.invoke(call(url, "wait")))
            await peer.started.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        await until(lambda: peer.cancelled == 3 and peer.running == 0)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        assert text(await mcp.invoke(call(url, "echo", {"text": "alive"}))) == "alive"


async def test_progress_and_log_messages_are_reported(tmp_path: Path, revision: str) -> None:
    async with serving(Peer(), revision=revision) as url, provider(tmp_path) as mcp:
        report = Reported()
        assert text(await mcp.invoke(call(url, "work", report=report))) == "worked"
        await until(lambda: report.outputs)
        assert report.progressed == [(0.25, "first"), (1.0, "last")]
        assert report.outputs == [("worker", "halfway")]


async def test_what_a_server_asks_is_answered_by_a_person(tmp_path: Path, revision: str) -> None:
    peer = Peer()
    async with serving(peer, revision=revision) as url, provider(tmp_path) as mcp:
        asked = (await mcp.invoke(call(url, "ask"))).input_required
        assert asked.message == "Which city?"
        assert plain(asked.requested_schema)["required"] == ["city"]
        answer = v1.ToolInputResponse(action="accept", state=asked.state)
        answer.content.update({"city": "Bergen"})
        result = await mcp.invoke(call(url, "ask", response=answer))
        assert text(result) == 'accept {"city": "Bergen"}'
        assert calls(mcp).waiting == 0


async def test_the_same_key_goes_with_every_attempt(tmp_path: Path, revision: str) -> None:
    async with serving(Peer(), revision=revision) as url, provider(tmp_path) as mcp:
        meta = text(await mcp.invoke(call(url, "meta")))
        assert '"llamastack.mesh/idempotency-key": "key-1"' in meta


async def test_content_of_all_kinds_is_understood(tmp_path: Path, revision: str) -> None:
    async with serving(Peer(), revision=revision) as url, provider(tmp_path) as mcp:
        assert (await mcp.invoke(call(url, "image"))).content.items[0].image.data == PIXEL
        files = await mcp.invoke(call(url, "files"))
        assert [one.mime_type for one in files.attachments][:2] == ["audio/wav", "application/x-test"]
        assert files.attachments[2].content.url.uri == "https://example.com/page"
        assert "a note" in text(files)
        structured = await mcp.invoke(call(url, "structured"))
        assert (text(structured), plain(structured.metadata)["structured_content"]) == ('{"n": 7}', {"n": 7})
        failed = await mcp.invoke(call(url, "fail"))
        assert (failed.error_code, failed.error_message) == (1, "no such ticket")
        broken = await mcp.invoke(call(url, "broken_schema"))
        assert (broken.error_code, "missing" in broken.error_message) == (1, True)


async def test_resources_and_prompts_are_tools_of_the_group(tmp_path: Path, revision: str) -> None:
    async with serving(Peer(), revision=revision) as url, provider(tmp_path) as mcp:
        listed = text(await mcp.invoke(call(url, "list_resources", method="resources/list")))
        assert "note://1" in listed
        assert "note://{number}" in listed
        read = await mcp.invoke(call(url, "read_resource", {"uri": "note://7"}, method="resources/read"))
        assert text(read) == "read note://7"
        assert "summary" in text(await mcp.invoke(call(url, "list_prompts", method="prompts/list")))
        arguments = {"name": "summary", "arguments": {"topic": "rivers"}}
        prompt = await mcp.invoke(call(url, "get_prompt", arguments, method="prompts/get"))
        assert "Summarise rivers" in text(prompt)


async def test_two_tenants_never_share_a_session(tmp_path: Path, revision: str) -> None:
    peer = Peer()
    async with serving(peer, revision=revision) as url, provider(tmp_path) as mcp:
        for tenant in ("a", "b", "a"):
            await mcp.invoke(call(url, "echo", {"text": tenant}, access=Access(tenant=tenant)))
        assert pool(mcp).size == 2
        assert len(peer.sessions) == (0 if revision == REVISIONS[0] else 2)


async def test_each_credential_goes_in_the_headers_of_its_own_requests(tmp_path: Path, revision: str) -> None:
    peer = Peer()
    async with serving(peer, revision=revision) as url, provider(tmp_path) as mcp:
        await mcp.invoke(call(url, "echo", {"text": "x"}, access=Access(authorization="first")))
        secret = {"authorization": "Basic eA==", "headers": '{"X-Api-Key": "second"}'}
        seen = len(peer.headers)
        await mcp.invoke(call(url, "echo", {"text": "x"}, access=Access(secret=secret)))
        assert {one["authorization"] for one in peer.headers[:seen]} == {"Bearer first"}
        # The first connection may still say good-bye; what the second sends has its key.
        second = [one for one in peer.headers[seen:] if "x-api-key" in one]
        assert {(one["authorization"], one["x-api-key"]) for one in second} == {("Basic eA==", "second")}
        assert pool(mcp).size == 2


async def test_a_refused_credential_names_where_to_get_one(tmp_path: Path, revision: str) -> None:
    async with serving(Peer(), revision=revision, key="right") as url, provider(tmp_path) as mcp:
        with pytest.raises(AuthenticationError, match="oauth-protected-resource") as caught:
            await mcp.list_tools(group(url), Access(authorization="wrong"))
        assert caught.value.metadata["resource_metadata"].startswith("https://mcp.example/")
        assert text(await mcp.invoke(call(url, "echo", {"text": "in"}, access=Access(authorization="right")))) == "in"


async def test_keys_in_addresses_and_ids_of_sessions_are_not_logged(
    tmp_path: Path, revision: str, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer()
    async with serving(peer, revision=revision) as url, provider(tmp_path) as mcp:
        caplog.set_level("DEBUG")
        await mcp.invoke(call(f"{url}?token=hidden-key", "echo", {"text": "hidden-text"}))
        written = " ".join(record.getMessage() for record in caplog.records if not record.name.startswith("sse_"))
        assert "hidden" not in written
        assert not any(session in written for session in peer.sessions)
