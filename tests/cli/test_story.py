"""From `stack up` to `stack down`, as the quick start tells it."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Command

CONFIG = {
    "runtime": {"ports": {"inference": 0, "agents": 0}},
    "inference": {"models": [{"model_id": "scripted", "provider_id": "scripted"}]},
}


@pytest.fixture
def home(command: Command) -> Iterator[Path]:
    # Not pytest's folder: paths of unix sockets must be short.
    with tempfile.TemporaryDirectory(prefix="story-") as folder:
        home = Path(folder)
        yield home
        command("down", home=folder)


def test_a_stack_is_started_used_and_stopped(command: Command, home: Path) -> None:
    (home / "stack.yaml").write_text(json.dumps(CONFIG))
    up = command("up", "--detach", "--config", str(home / "stack.yaml"), home=str(home))
    assert up.returncode == 0, up.stdout + up.stderr
    assert command("chat", "hello there", home=str(home)).stdout == "hello there\n"
    assert command("models", home=str(home)).stdout == "scripted llm ready scripted scripted\n"
    assert command("status", home=str(home)).returncode == 0
    assert command("down", home=str(home)).returncode == 0
    done = command("chat", "hello there", home=str(home))
    assert (done.returncode, done.stderr) == (
        1,
        f"error: no stack is running in {home}; start one with `stack up`\n",
    )
