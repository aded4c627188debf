"""`stack shield`: shields are added, listed, run and removed from the command line."""

import json

from tests.cli.conftest import Command


def test_a_shield_is_added_listed_run_and_removed(command: Command) -> None:
    added = command("shield", "add", "llama-guard-3", "--model", "the-guard")
    assert (added.returncode, added.stderr) == (0, "")
    assert added.stdout == "llama-guard-3 judges by the-guard on user, assistant, tool_arguments\n"
    assert command("shield", "list").stdout == "llama-guard-3 llama-guard the-guard\n"
    [shield] = json.loads(command("shield", "--json").stdout)
    assert shield["params"]["surfaces"] == ["user", "assistant", "tool_arguments"]
    safe = command("shield", "run", "llama-guard-3", "hello")
    assert (safe.returncode, safe.stdout.splitlines()[0]) == (0, "allow, score 0.000  (llama-guard-3)")
    unsafe = command("shield", "run", "policy", stdin="a forbidden thing")
    assert unsafe.returncode == 3
    assert unsafe.stdout.startswith("block: S1, score 1.000")
    answer = json.loads(command("shield", "run", "policy", "--surface", "assistant", "forbidden", "--json").stdout)
    assert answer["verdict"]["surface"] == "SAFETY_SURFACE_ASSISTANT"
    assert answer["violation"]["metadata"]["violation_type"] == "S1"
    assert command("audit", "verify").stdout.count("records in order") == 1
    assert command("shield", "remove", "llama-guard-3").stdout == "llama-guard-3 is gone\n"
    assert command("shield", "list").stdout == ""


def test_mistakes_end_in_one_line_that_names_the_way_out(command: Command) -> None:
    for arguments, words in (
        (["shield", "add", "mine"], "name one with --provider"),
        (["shield", "add", "llama-guard-9", "--model", "nothing"], "neither a file or folder nor a hub id"),
        (["shield", "run", "nobody", "hello"], "no shield 'nobody'"),
        (["shield", "add", "x", "--provider", "nobody"], "no provider 'nobody'; this service has: "),
        (["shield", "add", "x", "--provider", "pii", "--params", '{"nothing": 1}'], "nothing"),
    ):
        done = command(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
