"""What goes wrong on the way: servers that die, programs, addresses that are refused, answers nobody waits for."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from llamastack import v1
from services.runtime.reader import ConfigError
from services.tools.provider import Access
from stack_client.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    PermissionDeniedError,
    UnavailableError,
)
from tests.stacks import ROOT
from tests.tools.mcp import servers
from tests.tools.mcp.servers import REVISIONS, Peer, serving
from tests.tools.mcp.worlds import Reported, call, calls, group, plain, pool, provider, text, until


def program(folder: Path, **more: Any) -> dict[str, Any]:
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos' / 'gen'}"}
    arguments = [servers.__file__, str(folder / "started")]
    return {"peer": {"command": sys.executable, "args": arguments, "env": environment, **more}}


def children() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if servers.__file__ in " ".join(one.cmdline())]


@pytest.fixture(params=REVISIONS)
def revision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_server_that_was_killed_and_restarted_is_found_again(tmp_path: Path, revision: str) -> None:
    async with provider(tmp_path) as mcp:
        async with serving(Peer(), revision=revision) as url:
            port = int(url.split(":")[2].split("/")[0])
            assert text(await mcp.invoke(call(url, "echo", {"text": "before"}))) == "before"
        with pytest.raises(UnavailableError, match="does not answer"):
            await mcp.invoke(call(url, "echo", {"text": "away"}))
        async with serving(Peer(), revision=revision, port=port):
            assert text(await mcp.invoke(call(url, "echo", {"text": "after"}))) == "after"


async def test_a_session_that_the_server_forgot_is_opened_anew(tmp_path: Path) -> None:
    peer = Peer()
    async with provider(tmp_path) as mcp:
        async with serving(peer, revision="2025-11-25") as url:
            port = int(url.split(":")[2].split("/")[0])
            await mcp.invoke(call(url, "echo", {"text": "before"}))
        async with serving(peer, revision="2025-11-25", port=port):
            assert text(await mcp.invoke(call(url, "echo", {"text": "after"}))) == "after"
        assert len(peer.sessions) == 2


async def test_a_call_whose_server_dies_says_that_its_effect_is_not_known(tmp_path: Path, revision: str) -> None:
    peer = Peer()
    async with provider(tmp_path) as mcp:
        async with serving(peer, revision=revision) as url:
            running = asyncio.create_task(mcp.invoke(call(url, "wait")))
            await peer.started.wait()
        result = await running
        assert result.error_code == 1
        assert "not known" in result.error_message


async def test_a_program_is_spoken_to_over_its_pipes_and_ends_with_the_provider(tmp_path: Path) -> None:
    async with provider(tmp_path, stdio=program(tmp_path)) as mcp:
        tools = [tool.name for tool in await mcp.list_tools(group("stdio:peer"), Access())]
        assert tools[0] == "echo"
        report = Reported()
        assert text(await mcp.invoke(call("stdio:peer", "work", report=report))) == "worked"
        assert report.progressed == [(0.25, "first"), (1.0, "last")]
        assert len(children()) == 1
    await until(lambda: not children())


async def test_each_tenant_has_a_program_of_its_own(tmp_path: Path) -> None:
    async with provider(tmp_path, stdio=program(tmp_path)) as mcp:
        for tenant in ("a", "b", "a"):
            await mcp.invoke(call("stdio:peer", "echo", {"text": "x"}, access=Access(tenant=tenant)))
        assert len(children()) == 2


async def test_a_program_that_was_killed_is_started_again(tmp_path: Path) -> None:
    async with provider(tmp_path, stdio=program(tmp_path)) as mcp:
        await mcp.invoke(call("stdio:peer", "echo", {"text": "x"}))
        (child,) = children()
        os.kill(child.pid, signal.SIGKILL)
        await until(lambda: pool(mcp).size == 0)
        assert text(await mcp.invoke(call("stdio:peer", "echo", {"text": "again"}))) == "again"


async def test_a_cancelled_call_of_a_program_leaves_the_program_alive(tmp_path: Path) -> None:
    async with provider(tmp_path, stdio=program(tmp_path)) as mcp:
        await mcp.invoke(call("stdio:peer", "echo", {"text": "x"}))
        running = asyncio.create_task(mcp.invoke(call("stdio:peer", "wait")))
        await until(lambda: pool(mcp)._open and next(iter(pool(mcp)._open.values()))._running)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert text(await mcp.invoke(call("stdio:peer", "echo", {"text": "alive"}))) == "alive"
        assert len(children()) == 1


async def test_a_program_that_cannot_be_started_is_unavailable(tmp_path: Path) -> None:
    stdio = {"none": {"command": "/no/such/program"}}
    async with provider(tmp_path, stdio=stdio) as mcp:
        with pytest.raises(UnavailableError, match="stdio:none"):
            await mcp.list_tools(group("stdio:none"), Access())


async def test_an_idle_connection_is_closed(tmp_path: Path, revision: str) -> None:
    async with serving(Peer(), revision=revision) as url, provider(tmp_path, idle_seconds=0.05) as mcp:
        await mcp.invoke(call(url, "echo", {"text": "x"}))
        await until(lambda: pool(mcp).size == 0)
        assert text(await mcp.invoke(call(url, "echo", {"text": "again"}))) == "again"


async def test_an_address_in_our_network_is_refused(tmp_path: Path) -> None:
    async with serving(Peer()) as url, provider(tmp_path, allow=()) as mcp:
        with pytest.raises(InvalidArgumentError, match="not public"):
            await mcp.check(group(url), Access())
        with pytest.raises(PermissionDeniedError, match=r"tools\.egress_allow"):
            await mcp.list_tools(group(url), Access())


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("", "names its server"),
        ("ftp://example.com/mcp", "https:, http: or stdio:"),
        ("http://user:pass@example.com/", "name or password"),
        ("http:///mcp", "no address"),
        ("http://example.com:99999/", "no URL"),
        ("stdio:rm -rf /", "no program"),
    ],
)
async def test_an_endpoint_that_is_none_is_refused_with_the_reason(tmp_path: Path, uri: str, reason: str) -> None:
    async with provider(tmp_path) as mcp:
        with pytest.raises(InvalidArgumentError, match=reason) as caught:
            await mcp.check(group(uri), Access())
        assert caught.value.field == "mcp_endpoint"


async def test_a_program_takes_no_bearer_token_and_only_named_keys_of_a_secret(tmp_path: Path) -> None:
    async with provider(tmp_path, stdio=program(tmp_path)) as mcp:
        with pytest.raises(InvalidArgumentError, match="takes no bearer token"):
            await mcp.check(group("stdio:peer"), Access(authorization="token"))
        with pytest.raises(FailedPreconditionError, match="secret_env"):
            await mcp.check(group("stdio:peer"), Access(secret={"LD_PRELOAD": "x.so"}))


async def test_a_secret_cannot_bend_the_protocol(tmp_path: Path) -> None:
    async with provider(tmp_path) as mcp:
        for secret in ({"headers": '{"Host": "evil"}'}, {"headers": "no json"}, {"other": "x"}, {"client_id": "x"}):
            with pytest.raises(FailedPreconditionError):
                await mcp.check(group("http://127.0.0.1:1/"), Access(secret=secret))


async def test_a_secret_goes_to_its_own_hosts_only(tmp_path: Path) -> None:
    secrets = {"crm": {"values": {"authorization": {"env": "CRM"}}, "hosts": ["crm.example.com"], "tenants": ["*"]}}
    async with serving(Peer()) as url, provider(tmp_path, secrets=secrets) as mcp:
        access = Access(secret={"authorization": "token"})
        with pytest.raises(PermissionDeniedError, match="the secret's hosts"):
            await mcp.list_tools(group(url, secrets_ref="crm"), access)
        with pytest.raises(PermissionDeniedError, match="egress_hosts"):
            await mcp.list_tools(group(url, egress_hosts=["other.example.com"]), Access())
        assert await mcp.list_tools(group(url, egress_hosts=["127.0.0.1"]), access)


async def test_a_credential_is_not_sent_without_tls_to_places_that_the_operator_does_not_name(tmp_path: Path) -> None:
    async with provider(tmp_path, allow=()) as mcp:
        with pytest.raises(PermissionDeniedError, match="without TLS"):
            await mcp.list_tools(group("http://93.184.216.34/mcp"), Access(authorization="token"))


async def test_claims_of_a_server_make_effects_stricter_only(tmp_path: Path) -> None:
    async with serving(Peer()) as url, provider(tmp_path) as mcp:
        read = group(url, effect=v1.TOOL_EFFECT_READ)
        effects = {tool.name: tool.effect for tool in await mcp.list_tools(read, Access())}
        assert (effects["echo"], effects["erase"]) == (v1.TOOL_EFFECT_READ, v1.TOOL_EFFECT_WRITE)
        effects = {tool.name: tool.effect for tool in await mcp.list_tools(group(url), Access())}
        assert (effects["echo"], effects["read_resource"]) == (v1.TOOL_EFFECT_WRITE, v1.TOOL_EFFECT_READ)
    async with serving(Peer()) as url, provider(tmp_path, trust_annotations=["127.0.0.1"]) as mcp:
        effects = {tool.name: tool.effect for tool in await mcp.list_tools(group(url), Access())}
        assert (effects["echo"], effects["fail"]) == (v1.TOOL_EFFECT_READ, v1.TOOL_EFFECT_WRITE)


async def test_an_answer_that_nobody_waits_for_says_to_call_again(tmp_path: Path) -> None:
    async with serving(Peer(), revision="2025-11-25") as url, provider(tmp_path) as mcp:
        answer = v1.ToolInputResponse(action="accept", state='{"held": "gone"}')
        result = await mcp.invoke(call(url, "ask", response=answer))
        assert "call the tool again" in result.error_message
        with pytest.raises(InvalidArgumentError, match="send it back unchanged"):
            await mcp.invoke(call(url, "ask", response=v1.ToolInputResponse(action="accept", state="bent")))


async def test_a_question_that_another_tenant_was_asked_is_not_answered_by_this_one(tmp_path: Path) -> None:
    async with serving(Peer(), revision="2025-11-25") as url, provider(tmp_path) as mcp:
        asked = (await mcp.invoke(call(url, "ask", access=Access(tenant="a")))).input_required
        answer = v1.ToolInputResponse(action="decline", state=asked.state)
        result = await mcp.invoke(call(url, "ask", access=Access(tenant="b"), response=answer))
        assert result.error_code == 1
        mine = await mcp.invoke(call(url, "ask", access=Access(tenant="a"), response=answer))
        assert text(mine) == "decline null"


async def test_a_question_without_an_answer_in_time_is_cancelled(tmp_path: Path) -> None:
    peer = Peer()
    async with serving(peer, revision="2025-11-25") as url, provider(tmp_path, hold_seconds=0.05) as mcp:
        assert (await mcp.invoke(call(url, "ask"))).HasField("input_required")
        await until(lambda: calls(mcp).waiting == 0)
        await until(lambda: peer.answers)
        assert peer.answers[0].action == "cancel"


async def test_an_address_to_open_is_a_question_and_the_call_is_made_anew(tmp_path: Path) -> None:
    async with serving(Peer(), revision="2025-11-25") as url, provider(tmp_path) as mcp:
        asked = (await mcp.invoke(call(url, "open"))).input_required
        assert (asked.message, asked.url) == ("Sign in", "https://example.com/in")
        answer = v1.ToolInputResponse(action="accept", state=asked.state)
        assert text(await mcp.invoke(call(url, "open", response=answer))) == "signed in"


async def test_more_servers_than_allowed_push_out_idle_connections(tmp_path: Path) -> None:
    async with serving(Peer()) as url, provider(tmp_path, max_connections=1) as mcp:
        for tenant in ("a", "b"):
            await mcp.invoke(call(url, "echo", {"text": "x"}, access=Access(tenant=tenant)))
        await until(lambda: pool(mcp).size == 1)


async def test_a_group_that_is_gone_lets_go_of_its_connection(tmp_path: Path) -> None:
    async with serving(Peer()) as url, provider(tmp_path) as mcp:
        await mcp.invoke(call(url, "echo", {"text": "x"}))
        await mcp.removed(group(url), Access())
        await until(lambda: pool(mcp).size == 0)


async def test_an_unknown_tool_is_an_error_in_words_and_not_of_the_call(tmp_path: Path, revision: str) -> None:
    async with serving(Peer(), revision=revision) as url, provider(tmp_path) as mcp:
        result = await mcp.invoke(call(url, "no_such"))
        assert result.error_code == 1
        assert "mcp_error_code" in plain(result.metadata)


def test_a_wrong_setting_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tools\.providers\.model-context-protocol\.idle_seconds"):
        provider(tmp_path, idle_seconds=0.0)


async def test_a_program_asks_a_person(tmp_path: Path) -> None:
    async with provider(tmp_path, stdio=program(tmp_path)) as mcp:
        first = await mcp.invoke(call("stdio:peer", "ask"))
        if first.HasField("input_required"):  # a session; without one the call itself comes back with the question
            answer = v1.ToolInputResponse(action="accept", state=first.input_required.state)
            answer.content.update({"city": "Oslo"})
            assert "Oslo" in text(await mcp.invoke(call("stdio:peer", "ask", response=answer)))


def test_the_service_starts_without_loading_the_sdk() -> None:
    code = "import sys, services.tools.__main__; sys.exit('mcp' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos' / 'gen'}"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


@pytest.mark.parametrize("json_response", [True, False])
async def test_an_answer_that_is_too_large_ends_its_call_and_no_other(tmp_path: Path, json_response: bool) -> None:
    async with (
        serving(Peer(), revision="2025-11-25", json_response=json_response) as url,
        provider(tmp_path, max_answer_bytes=64 * 1024) as mcp,
    ):
        result = await mcp.invoke(call(url, "echo", {"text": "x" * 100_000}))
        assert result.error_code == 1
        assert text(await mcp.invoke(call(url, "echo", {"text": "small"}))) == "small"
