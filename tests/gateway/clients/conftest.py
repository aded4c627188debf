"""Runs the programs of public clients, each once, and keeps what every test in them said."""

import functools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.gateway.clients.environments import ENVIRONMENTS, Environment, NoEnvironmentError
from tests.stacks import StackProcess

MAKERS = 3
"""Environments that are made at once."""
Outcomes = Callable[[Environment, str], Mapping[str, str]]


@pytest.fixture(scope="session")
def folders() -> Mapping[Environment, "Future[Path]"]:
    """The environments, in the making; the first tests run while later environments are still made."""
    pool = ThreadPoolExecutor(MAKERS, thread_name_prefix="environments")
    made = {environment: pool.submit(environment.make) for environment in ENVIRONMENTS}
    pool.shutdown(wait=False)
    return made


@pytest.fixture(scope="session")
def made(folders: Mapping[Environment, "Future[Path]"]) -> Callable[[Environment], Environment]:
    """Wait until an environment is made; skips where it cannot be had, but never when CI says REQUIRE_CLIENTS."""

    def wait(environment: Environment) -> Environment:
        try:
            folders[environment].result()
        except NoEnvironmentError as error:
            if os.environ.get("REQUIRE_CLIENTS"):
                raise
            pytest.skip(f"{environment.name}: {error}")
        return environment

    return wait


@pytest.fixture(scope="session")
def outcomes(gateway_stack: StackProcess, made: Callable[[Environment], Environment]) -> Outcomes:
    """What went wrong in each test of a program, empty where nothing did."""

    @functools.cache
    def run(environment: Environment, program: str) -> Mapping[str, str]:
        return made(environment).run(program, url=gateway_stack.url)

    return run
