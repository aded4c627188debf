"""`stack tools`."""

import json
from pathlib import Path

from tests.cli.conftest import Command

WOLFRAM = "builtin::wolfram_alpha/wolfram_alpha"
DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "Pets", "version": "1"},
    "servers": [{"url": "https://pets.example"}],
    "paths": {"/pets": {"get": {"operationId": "listPets", "summary": "All pets."}}},
}


def test_the_built_in_tools_are_listed(command: Command) -> None:
    lines = command("tools").stdout.splitlines()
    assert any(line.startswith("builtin::websearch/web_search\tread\t") for line in lines)
    (tool,) = json.loads(command("tools", "list", "builtin::wolfram_alpha", "--json").stdout)
    assert tool["name"] == "wolfram_alpha"


def test_a_tool_is_called(command: Command) -> None:
    done = command("tools", "call", WOLFRAM, "--arg", "query=2+2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2+2 = 4")
    whole = json.loads(command("tools", "call", "wolfram_alpha", "--json", '{"query": "2^10"}', "--whole").stdout)
    assert whole["metadata"] == {"engine": "local", "exact": True}


def test_a_tool_that_fails_says_why(command: Command) -> None:
    done = command("tools", "call", WOLFRAM, "--arg", "colour=red")
    assert done.returncode == 1
    assert "/query: is missing" in done.stderr
    assert "no tool" in command("tools", "call", "nobody").stderr
    assert "NAME=VALUE" in command("tools", "call", WOLFRAM, "--arg", "query").stderr


def test_a_group_is_added_and_removed(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "pets.json"
    file.write_text(json.dumps(DOCUMENT))
    added = command("tools", "add", "http::cli", "--openapi", str(file), "--approval", "writes")
    assert added.stdout == "http::cli has 1 tools: listPets\n", added.stderr
    assert "http::cli/listPets\tread\tAll pets." in command("tools", "list", "http::cli").stdout
    assert command("tools", "remove", "http::cli").stdout == "http::cli is gone\n"
    assert "no tool group 'http::cli'" in command("tools", "list", "http::cli").stderr
    assert "configuration" in command("tools", "remove", "builtin::rag").stderr
