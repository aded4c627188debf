"""What `import stack_client` offers and what it costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stack_client
from stack_client import errors
from tests.stacks import ROOT, environment

PUBLIC = [
    "MCP", "Agent", "AgentEvent", "AgentResult", "FakeModel", "Memory", "Pending", "Recording", "StackClient",
    "SyncStackClient", "ToolGroup", "call", "errors", "print_events", "tool",
]  # fmt: skip
ERRORS = [
    "AlreadyExistsError", "AuthenticationError", "CancelledError", "ConflictError", "DataLossError",
    "DeadlineExceededError", "FailedPreconditionError", "InternalError", "InvalidArgumentError", "NotFoundError",
    "OutOfRangeError", "PermissionDeniedError", "ResourceExhaustedError", "StackError", "StreamBrokenError",
    "UnavailableError", "UnsupportedError",
]  # fmt: skip
HEAVY = ["torch", "numpy", "services", "compose", "rich", "pydantic", "tokenizers", "sqlalchemy", "yaml"]


def test_the_public_names_are_these() -> None:
    assert stack_client.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(stack_client, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        stack_client.Nothing  # noqa: B018


def test_the_errors_are_these() -> None:
    kinds = [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert sorted(kinds) == ERRORS


@pytest.mark.parametrize(
    "code",
    [
        "import stack_client",
        "from stack_client import Agent, StackClient, SyncStackClient; SyncStackClient('localhost'); Agent('m')",
    ],
    ids=["import", "use"],
)
def test_importing_stays_light(code: str) -> None:
    assert imported(code) == []


def test_the_command_needs_neither_services_nor_pydantic() -> None:
    code = "from stack_client.cli import main; main(['chat', 'm', 'hi', '--home', '/nowhere'])"
    assert imported(code) == ["rich"]


def imported(code: str) -> list[str]:
    """The heavy packages that code imports."""
    probe = f"{code}\nimport sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", probe], env=environment(), cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy: list[str] = ast.literal_eval(done.stdout)
    return heavy


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(stack_client.__file__).parent / "py.typed").exists()
