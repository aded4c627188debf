"""Programs written with public clients work against the gateway; each program's tests are listed here as our own."""

import ast
import re

import pytest

from tests.gateway.clients.conftest import Outcomes
from tests.gateway.clients.environments import (
    LLAMA_STACK_0_2,
    LLAMA_STACK_0_7,
    NODE,
    OGX,
    OPENAI,
    PROGRAMS,
    Environment,
)

PUBLIC = (
    (OPENAI, "openai_chat.py"),
    (OPENAI, "openai_responses.py"),
    (OPENAI, "openai_tools.py"),
    (OPENAI, "openai_stores.py"),
    (OPENAI, "openai_engine.py"),
    (OPENAI, "langchain.py"),
    (LLAMA_STACK_0_2, "llama_stack_0_2.py"),
    (OGX, "ogx.py"),
    (LLAMA_STACK_0_7, "llama_stack_0_7.py"),
    (NODE, "openai_node.mjs"),
)


def checks_of(program: str) -> list[str]:
    """The names of a program's tests, read without importing it: its packages are not here."""
    text = (PROGRAMS / program).read_text()
    if program.endswith(".mjs"):
        return re.findall(r'^test\("([^"]+)"', text, re.MULTILINE)
    return [
        node.name
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]


@pytest.mark.parametrize(
    ("environment", "program", "name"),
    [
        pytest.param(environment, program, name, id=f"{program}: {name.removeprefix('test_').replace('_', ' ')}")
        for environment, program in PUBLIC
        for name in checks_of(program)
    ],
)
def test_a_public_client_works(environment: Environment, program: str, name: str, outcomes: Outcomes) -> None:
    found = outcomes(environment, program)
    assert "collecting" not in found, found["collecting"]
    mine = {key: problem for key, problem in found.items() if key.split("[")[0] == name}
    assert mine, f"{program} did not run {name}"
    problems = "".join(f"\n{key}\n{problem}" for key, problem in mine.items() if problem)
    if problems:
        pytest.fail(problems, pytrace=False)
