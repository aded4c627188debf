"""The stack that the tests of the SDK, the command line and the examples share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stacks import SERVICES, StackProcess, stack_process

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # GPU kernels run interpreted; Triton reads it when it is first imported


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Shells let background jobs ignore Ctrl-C, and so would every process that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def stack() -> Iterator[StackProcess]:
    """A running stack with a scripted model and a scripted embedding model."""
    with stack_process() as stack:
        stack.start(*SERVICES)
        with stack.declared():
            yield stack
