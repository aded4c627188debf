"""`stack chat` on a terminal."""

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import BOUND_SECONDS, COMMAND
from tests.stacks import ROOT, StackProcess, environment

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str, home: Path) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            env=environment(STACK_HOME=str(home), TERM="xterm", COLUMNS="120"),
            cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def until(self, text: str) -> str:
        """What was shown up to and with `text`."""
        limit = time.monotonic() + BOUND_SECONDS
        while text not in self._seen:
            ready, _, _ = select.select([self._ours], [], [], max(0.0, limit - time.monotonic()))
            assert ready, f"{text!r} was not shown; shown was: {self._seen!r}"
            self._seen = ESCAPES.sub("", self._seen + os.read(self._ours, 4096).decode())
        before, _, self._seen = self._seen.partition(text)
        return before + text

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(BOUND_SECONDS)
        os.close(self._ours)


@pytest.fixture
def repl(stack: StackProcess) -> Iterator[Terminal]:
    terminal = Terminal("chat", "scripted", home=stack.home)
    yield terminal
    terminal.close()


def test_a_dialog_answers_and_ends_with_ctrl_d(repl: Terminal, stack: StackProcess) -> None:
    repl.until("> ")
    repl.type("say hello there\n")
    shown = repl.until("2 tokens")
    assert "\nhello there\n" in shown
    repl.until("> ")
    repl.type("\x04")
    assert repl.process.wait(BOUND_SECONDS) == 0
    assert "say hello there" in (stack.home / "chat_history").read_text()


def test_ctrl_c_stops_the_answer_and_not_the_program(repl: Terminal) -> None:
    repl.until("> ")
    repl.type("hang\n")
    repl.until("one two three")
    repl.interrupt()
    repl.until("> ")
    repl.type("say still here\n")
    repl.until("\nstill here")
    repl.until("> ")
    repl.interrupt()
    repl.until("> ")
    repl.type("say me too\n")
    repl.until("\nme too")


def test_an_error_is_shown_and_the_dialog_goes_on(repl: Terminal) -> None:
    repl.until("> ")
    repl.type("break\n")
    repl.until("error: the scripted engine broke")
    repl.until("> ")
    repl.type("/clear\n")
    repl.until("> ")
    repl.type("say fine\n")
    repl.until("\nfine")


def test_earlier_prompts_come_back_by_the_arrow_key(repl: Terminal) -> None:
    repl.until("> ")
    repl.type("say remembered\n")
    repl.until("\nremembered")
    repl.until("> ")
    repl.type("\x1b[A\n")
    repl.until("say remembered")
    repl.until("\nremembered")


def test_models_are_a_table_on_a_terminal(stack: StackProcess) -> None:
    terminal = Terminal("models", home=stack.home)
    assert "provider" in terminal.until("words")
    assert terminal.process.wait(BOUND_SECONDS) == 0
    terminal.close()


def test_vectors_are_a_table_on_a_terminal(stack: StackProcess) -> None:
    terminal = Terminal("embed", "a cat", home=stack.home)
    assert "dimension" in terminal.until("16")
    terminal.close()
