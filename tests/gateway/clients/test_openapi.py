"""Requests that a generator makes of our own OpenAPI document: none of them may break the server."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gateway.clients.environments import SCHEMATHESIS, Environment
from tests.stacks import SERVICES, StackProcess, stack_process

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "4")
"""Per operation; a hundred find no more than these, and take a quarter of an hour."""
PHASES = os.environ.get("SCHEMATHESIS_PHASES", "fuzzing")
"""`coverage` adds some 18,000 requests, a wrong one for each constraint of each field."""
OTHER_MOUNTS = "^/(alpha|v1alpha|v1beta|v1/openai)/"
"""The same handlers under other prefixes, and routes of 0.0.63 that are gone and say so with 501."""


@pytest.fixture(scope="module")
def own_stack() -> Iterator[StackProcess]:
    """A stack of its own: what is generated makes models, agents and stores of all names."""
    with stack_process() as stack:
        stack.start(*SERVICES, "telemetry")
        stack.start("gateway")
        yield stack


def test_no_request_of_the_documented_shapes_or_near_them_breaks_the_server(
    own_stack: StackProcess, made: Callable[[Environment], Environment], tmp_path: Path
) -> None:
    run = made(SCHEMATHESIS).module(
        "schemathesis.cli", "run", f"{own_stack.url}/openapi.json", "--checks", "not_a_server_error",
        "--phases", PHASES, "--max-examples", EXAMPLES, "--seed", "7", "--workers", "2", "--request-timeout", "30",
        "--exclude-path-regex", OTHER_MOUNTS, "--generation-database", "none", "--continue-on-failure", "--no-color",
        url=own_stack.url, cwd=tmp_path, seconds=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
