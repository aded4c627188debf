"""What the README shows runs, and what it points to exists."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from services.inference.config import InferenceConfig
from services.runtime.config import read_stack
from stack_client import SyncStackClient
from stack_client.cli import command_line
from tests.stacks import ROOT, StackProcess, environment

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
OURS = [text for kind, text in BLOCKS if kind == "python" and "from openai" not in text]
"""Programs of our SDK; those of other clients are run by tests/gateway/clients."""
NAMED = ("llama-3.1-8b", "smollm2-135m")


@pytest.fixture
def readers_stack(stack: StackProcess) -> Iterator[StackProcess]:
    """The stack of the tests, with scripted models under the names that the README uses."""
    with SyncStackClient(stack.addresses) as client:
        for name in NAMED:
            client.models.register(name, provider_id="scripted")
            client.models.wait_ready(name)
        yield stack
        for name in NAMED:
            client.models.unregister(name)


READMES = [README, *(file.read_text() for file in sorted((ROOT / "services").rglob("README.md")))]
COMMANDS = sorted(
    {
        re.split(r"\s{2,}|\s#", line)[0].strip()
        for text in READMES
        for line in re.findall(r"^    (stack [a-z].*)$", text, re.MULTILINE) + re.findall(r"`(stack [a-z][^`]*)`", text)
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_that_the_readmes_show_are_understood(line: str) -> None:
    assert callable(command_line().parse_args(shlex.split(line)[1:]).command)


@pytest.mark.parametrize("block", OURS, ids=["agent", "client", "approval", "fake"])
def test_the_python_blocks_run(readers_stack: StackProcess, block: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block],
        env=environment(STACK_HOME=str(readers_stack.home)), cwd=ROOT, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


@pytest.mark.parametrize(
    "block", [text for kind, text in BLOCKS if kind == "yaml"], ids=["weights", "endpoint", "router"]
)
def test_the_configuration_blocks_are_valid_configurations(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in re.findall(r"api_key_env: (\w+)", block):
        monkeypatch.setenv(variable, "a key")
    file = tmp_path / "stack.yaml"
    file.write_text(block)
    read: InferenceConfig = read_stack(file).section(InferenceConfig, name="inference")
    shown = yaml.safe_load(block)["inference"].get("models")
    if shown:
        assert [model.model_id for model in read.models] == [model["model_id"] for model in shown]


def test_every_path_that_it_names_exists_and_it_is_short() -> None:
    named = re.findall(r"`((?:protos|services|stack_client|compose)/[\w./]*)`|\]\(([\w./]+)\)", README)
    for path in {first or second for first, second in named}:
        assert (ROOT / path).exists(), path
    assert README.count("\n") < 300
