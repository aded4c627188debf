"""The Node.js example: the protos alone are enough for another language."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.stacks import ROOT, StackProcess

EXAMPLE = ROOT / "stack_client" / "examples" / "node"
INSTALL_SECONDS = 120.0
RUN_SECONDS = 60.0
MAX_LINES = 40


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its packages; skips where they cannot be had, but never when CI says REQUIRE_NODE."""
    strict = bool(os.environ.get("REQUIRE_NODE"))
    if not strict and not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    for file in ("package.json", "stream_chat.mjs", "mesh.mjs", "agent.mjs"):
        shutil.copy(EXAMPLE / file, folder)
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    if done.returncode and not strict:
        pytest.skip(f"npm install failed, is the registry reachable? {done.stderr.strip().splitlines()[-1:]}")
    assert done.returncode == 0, done.stderr
    return folder


def run(folder: Path, *arguments: str, example: str = "stream_chat.mjs") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["node", example, "--protos", str(ROOT / "protos"), *arguments],
        cwd=folder, capture_output=True, text=True, timeout=RUN_SECONDS, check=False,
    )  # fmt: skip


def test_node_streams_a_chat(node: Path, stack: StackProcess) -> None:
    done = run(node, "--address", stack.addresses["inference"], "--model", "scripted", "say hello from node")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello from node\n3 tokens\n", "")


def test_node_sees_errors_by_their_status(node: Path, stack: StackProcess) -> None:
    done = run(node, "--address", stack.addresses["inference"], "--model", "llama-9b", "hi")
    assert done.returncode == 1
    assert done.stderr.startswith("NOT_FOUND: no model 'llama-9b'; this stack serves: ")


def test_node_runs_a_turn_with_a_tool_that_a_person_allows(node: Path, stack: StackProcess) -> None:
    done = run(node, "--address", stack.addresses["agents"], "--model", "scripted", example="agent.mjs")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        'PENDING_KIND_APPROVAL get_weather {"city": "Oslo"}',
        'PENDING_KIND_CLIENT_TOOL get_weather {"city": "Oslo"}',
        "TURN_STATUS_COMPLETED The tool says: sunny in Oslo",
    ]


def test_node_denies_a_tool_and_the_model_reads_why(node: Path, stack: StackProcess) -> None:
    done = run(node, "--address", stack.addresses["agents"], "--model", "scripted", "--deny", example="agent.mjs")
    assert (done.returncode, done.stderr) == (0, "")
    assert "CLIENT_TOOL" not in done.stdout
    assert "said in Node" in done.stdout.splitlines()[-1]


def test_node_sees_that_a_turn_failed(node: Path, stack: StackProcess) -> None:
    done = run(node, "--address", stack.addresses["agents"], "--model", "llama-9b", example="agent.mjs")
    assert "no model 'llama-9b'" in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["stream_chat.mjs", "agent.mjs"])
def test_the_program_is_short(name: str) -> None:
    assert (EXAMPLE / name).read_text().count("\n") < MAX_LINES
