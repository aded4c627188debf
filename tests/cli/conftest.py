"""Running the `stack` command as a person would."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.stacks import ROOT, StackProcess, environment

COMMAND = [sys.executable, "-m", "stack_client.cli"]
BOUND_SECONDS = 30.0

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(stack: StackProcess) -> Command:
    """Runs `stack ARGUMENTS` against the shared stack; `stdin` is what comes through a pipe."""

    def run(*arguments: str, stdin: str = "", home: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*COMMAND, *arguments],
            env=environment(STACK_HOME=home or str(stack.home)),
            cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=BOUND_SECONDS, check=False,
        )  # fmt: skip

    return run
