"""`stack agent`: run, sessions, show, resume, cancel."""

import json
import re
from pathlib import Path

import pytest

from stack_client import Agent, SyncStackClient, tool
from tests.cli.conftest import Command
from tests.stacks import StackProcess

CALCULATE = ("--tool", "builtin::wolfram_alpha")
TOLD = re.compile(r"^session (\S+)  turn (\S+)$", re.MULTILINE)


def told(stderr: str) -> tuple[str, str]:
    """The session and the turn that a command names."""
    found = TOLD.search(stderr)
    assert found is not None, stderr
    return found[1], found[2]


def waiting(command: Command) -> tuple[str, str, str]:
    """A turn that waits for an approval: its session, its id, its call."""
    done = command("agent", "run", "calculate it", *CALCULATE, "--approvals", "always")
    assert done.returncode == 0, done.stderr
    (turn,) = json.loads(command("agent", "show", told(done.stderr)[1], "--json").stdout)
    return turn["session_id"], turn["turn_id"], turn["pending"][0]["call"]["call_id"]


def test_an_agent_answers_and_names_session_and_turn(command: Command) -> None:
    done = command("agent", "run", "say hello there")
    assert (done.returncode, done.stdout) == (0, "hello there\n")
    session, turn = told(done.stderr)
    assert session != turn


def test_a_prompt_comes_through_a_pipe_and_an_empty_one_is_refused(command: Command) -> None:
    assert command("agent", "run", stdin="say piped\n").stdout == "piped\n"
    done = command("agent", "run", stdin="")
    assert done.returncode == 2
    assert "the prompt is empty" in done.stderr


def test_a_run_is_printed_as_one_json_document(command: Command) -> None:
    turn = json.loads(command("agent", "run", "say hello", "--json").stdout)
    assert turn["status"] == "TURN_STATUS_COMPLETED"
    assert turn["output_message"]["content"]["items"] == [{"text": "hello"}]


def test_calls_and_results_of_tools_are_shown(command: Command) -> None:
    done = command("agent", "run", "calculate it", *CALCULATE)
    lines = done.stdout.splitlines()
    assert lines[0] == '[call] wolfram_alpha({"query": "6 * 7"})'
    assert lines[1].startswith("[result] 6 * 7 = 42")
    assert "The tool says: 6 * 7 = 42" in done.stdout


def test_a_session_goes_on_and_is_listed_newest_first(command: Command) -> None:
    session, _ = told(command("agent", "run", "say one").stderr)
    again, _ = told(command("agent", "run", "say two", "--session", session).stderr)
    assert again == session
    later, _ = told(command("agent", "run", "say three").stderr)
    listed = json.loads(command("agent", "sessions", "--json").stdout)
    ids = [row["session_id"] for row in listed]
    assert ids.index(later) < ids.index(session)
    row = listed[ids.index(session)]
    assert row["model"] == "scripted"
    own = json.loads(command("agent", "sessions", "--agent", row["agent_id"], "--json").stdout)
    assert [one["session_id"] for one in own] == [session]
    assert any(line.startswith(f"{session}  ") for line in command("agent", "sessions").stdout.splitlines())


def test_a_turn_is_shown_with_its_steps(command: Command) -> None:
    session, turn = told(command("agent", "run", "calculate it", *CALCULATE).stderr)
    shown = command("agent", "show", turn).stdout
    assert shown.startswith(f"turn {turn}  completed  ")
    for part in (
        "user: calculate it",
        "inference",
        "builtin::wolfram_alpha/wolfram_alpha",
        "-> 6 * 7 = 42",
        "answer: ",
    ):
        assert part in shown
    assert command("agent", "show", session).stdout == shown


def test_a_session_is_shown_with_all_its_turns(command: Command) -> None:
    session, first = told(command("agent", "run", "say one").stderr)
    _, second = told(command("agent", "run", "say two", "--session", session).stderr)
    turns = json.loads(command("agent", "show", session, "--json").stdout)
    assert [turn["turn_id"] for turn in turns] == [first, second]


def test_a_call_that_waits_is_approved(command: Command) -> None:
    done = command("agent", "run", "calculate it", *CALCULATE, "--approvals", "always")
    _, turn = told(done.stderr)
    assert "needs your approval" in done.stderr
    advised = re.search(r"stack (agent resume \S+ --approve \S+)", done.stderr)
    assert advised is not None
    resumed = command(*advised[1].split())
    assert resumed.returncode == 0, resumed.stderr
    assert "The tool says: 6 * 7 = 42" in resumed.stdout
    assert told(resumed.stderr)[1] == turn
    assert "approve call" in command("agent", "show", turn).stdout


def test_a_call_that_waits_is_denied_and_the_model_reads_why(command: Command) -> None:
    session, _, _ = waiting(command)
    resumed = command("agent", "resume", session, "--deny", "all", "--why", "not today")
    assert resumed.returncode == 0, resumed.stderr
    assert "not today" in resumed.stdout
    assert "= 42" not in resumed.stdout


def test_looking_at_a_turn_that_waits_decides_nothing(command: Command) -> None:
    _, turn, call = waiting(command)
    resumed = command("agent", "resume", turn)
    assert resumed.returncode == 0, resumed.stderr
    assert call in resumed.stdout
    assert json.loads(command("agent", "show", turn, "--json").stdout)[0]["pending"]


def test_a_call_that_does_not_wait_cannot_be_decided(command: Command) -> None:
    _, turn, call = waiting(command)
    done = command("agent", "resume", turn, "--approve", "other")
    assert done.returncode == 1
    assert f"no call 'other' waits; there waits: {call}" in done.stderr


def test_a_turn_that_has_ended_is_shown_again_by_resume(command: Command) -> None:
    session, turn = told(command("agent", "run", "say hello").stderr)
    done = command("agent", "resume", session)
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert told(done.stderr) == (session, turn)


def test_a_function_of_another_program_is_not_run_here(command: Command, stack: StackProcess, tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    @tool(approval="always")
    def refund(order_id: str, amount: float) -> str:
        """Give money back."""
        ran.touch()
        return "refunded"

    with SyncStackClient(stack.addresses) as client:
        agent = Agent("scripted", tools=[refund], client=client)
        waits = agent.run("Refund order A17.")
        done = command("agent", "resume", waits.turn_id, "--approve", "all")
        assert done.returncode == 1
        assert "'refund', which this program does not have" in done.stderr
        assert agent.resume(waits.turn_id).text == "The tool says: refunded"
    assert ran.exists()


def test_a_turn_that_waits_is_cancelled(command: Command) -> None:
    session, turn, _ = waiting(command)
    assert command("agent", "cancel", session).stdout == f"turn {turn} is cancelled\n"
    assert command("agent", "show", turn).stdout.startswith(f"turn {turn}  cancelled")
    assert command("agent", "cancel", turn).returncode == 1


@pytest.mark.parametrize("action", ["show", "resume", "cancel"])
def test_what_is_no_turn_and_no_session_is_said_so(command: Command, action: str) -> None:
    done = command("agent", action, "nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no turn and no session 'nothing'; see `stack agent sessions`" in done.stderr


def test_an_agent_that_cannot_be_is_refused(command: Command) -> None:
    done = command("agent", "run", "hi", "--tool", "builtin::nothing")
    assert done.returncode == 1
    assert "builtin::nothing" in done.stderr
    done = command("agent", "run", "hi", "--session", "nothing")
    assert done.returncode == 1
    assert "nothing" in done.stderr
