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


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its packages; skips where they cannot be had, but never when CI says REQUIRE_NODE."""
    strict = bool(os.environ.get("REQUIRE_NODE"))
    if not strict and not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    for file in ("package.json", "stream_chat.mjs"):
        shutil.copy(EXAMPLE / file, folder)
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    if done.returncode and not strict:
        pytest.skip(f"npm install failed, is the registry reachable? {done.stderr.strip().splitlines()[-1:]}")
    assert done.returncode == 0, done.stderr
    return folder


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["node", "stream_chat.mjs", "--protos", str(ROOT / "protos"), *arguments],
        cwd=folder, capture_output=True, text=True, timeout=RUN_SECONDS, check=False,
    )  # fmt: skip


def test_node_streams_a_chat(node: Path, stack: StackProcess) -> None:
    done = run(node, "--address", stack.addresses["inference"], "--model", "scripted", "say hello from node")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello from node\n3 tokens\n", "")


def test_node_sees_errors_by_their_status(node: Path, stack: StackProcess) -> None:
    done = run(node, "--address", stack.addresses["inference"], "--model", "llama-9b", "hi")
    assert done.returncode == 1
    assert done.stderr.startswith("NOT_FOUND: no model 'llama-9b'; this stack serves: ")
