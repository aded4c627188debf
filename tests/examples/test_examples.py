"""Every example runs, on the scripted model, as its docstring says."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.stacks import ROOT, StackProcess, environment

EXAMPLES = ROOT / "stack_client" / "examples"
BOUND_SECONDS = 60.0
MAX_LINES = 40
SHOWS = {
    "hello.py": ["Say hello.", "2 tokens"],
    "streaming.py": ["Write two lines about the sea."],
    "agent_tool.py": ['calls get_weather {"city": "Oslo"}', "The tool says: sunny in Oslo for 1 day(s)"],
    "agents.py": [
        "asked: poet", "The tool says: Rain writes on the roof.", "handed over: transfer_to_billing", "Who are you?",
    ],
    "approval.py": [
        "waits: refund of 5 EUR on A17", "pays 3.0 EUR", "The tool says: refunded 3.0 EUR on A17", "once is enough",
    ],
    "embeddings.py": ["The cat sleeps on the sofa.", "It will rain in Oslo."],
    "mcp_server.py": ['[call] order_status({"order_id": "A17"})', "The tool says: order A17 has left the warehouse"],
    "memory.py": ["manual.md, characters 0 to", "The engine is cooled by glycol."],
    "rag_folder.py": ["found: ", "30 days of leave", "How many days of leave do I have?"],
    "resume.py": ["the first program ended with SIGKILL", "The tool says: the room is yours on Monday"],
    "structured.py": ["Ticket high 'No heating'"],
    "sync_client.py": ["models: scripted, the-guard, words", "Once upon a time", "Count to three."],
    "sessions.py": ["user:      My name is Ada.", "user:      What is my name?", "assistant: What is my name?"],
}  # fmt: skip


def run(example: Path, *arguments: str, stack: StackProcess) -> str:
    done = subprocess.run(
        [sys.executable, str(example), *arguments],
        env=environment(STACK_HOME=str(stack.home)),
        cwd=ROOT, capture_output=True, text=True, timeout=BOUND_SECONDS, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SHOWS)


@pytest.mark.parametrize("name", SHOWS)
def test_the_example_shows_what_it_promises(stack: StackProcess, name: str) -> None:
    shown = run(EXAMPLES / name, "--model", "words" if name == "embeddings.py" else "scripted", stack=stack)
    for line in SHOWS[name]:
        assert line in shown


@pytest.mark.parametrize("name", SHOWS)
def test_the_example_is_short_and_says_how_to_run_it(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    assert text.count("\n") < MAX_LINES
    assert f"python stack_client/examples/{name} --model" in text.split('"""')[1]
