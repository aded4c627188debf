"""Runs the programs of public clients, each once, and keeps what every test in them said."""

import functools
import os
from collections.abc import Callable, Mapping

import pytest

from tests.gateway.clients.environments import Environment, NoEnvironmentError
from tests.stacks import StackProcess

Outcomes = Callable[[Environment, str], Mapping[str, str]]


@pytest.fixture(scope="session")
def made() -> Callable[[Environment], Environment]:
    """Skips where an environment is not installed, but never when CI says REQUIRE_CLIENTS."""

    def check(environment: Environment) -> Environment:
        try:
            assert environment.folder
        except NoEnvironmentError as error:
            if os.environ.get("REQUIRE_CLIENTS"):
                raise
            pytest.skip(str(error))
        return environment

    return check


@pytest.fixture(scope="session")
def outcomes(gateway_stack: StackProcess, made: Callable[[Environment], Environment]) -> Outcomes:
    """What went wrong in each test of a program, empty where nothing did."""

    @functools.cache
    def run(environment: Environment, program: str) -> Mapping[str, str]:
        return made(environment).run(program, url=gateway_stack.url)

    return run
