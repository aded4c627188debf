"""The stack that the tests of the SDK, the command line and the examples share."""

from collections.abc import Iterator

import pytest

from tests.stacks import SERVICES, StackProcess, stack_process


@pytest.fixture(scope="session")
def stack() -> Iterator[StackProcess]:
    """A running stack with a scripted model and a scripted embedding model."""
    with stack_process() as stack:
        stack.start(*SERVICES)
        with stack.declared():
            yield stack
