"""Showing a run to a person: `print_events(agent.stream(...))`, and the dialog of `agent.chat()`."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from stack_client.content import text_of
from stack_client.errors import StackError
from stack_client.results import AgentEvent, AgentResult, Answers, Pending

if TYPE_CHECKING:
    from stack_client.agent import Agent

SHORT = 200
"""Characters of a tool's result that are shown."""


def print_events(events: Iterable[AgentEvent], *, file: TextIO | None = None) -> AgentResult | None:
    """Print a run as it happens: text as it comes, calls, results, shields. Returns its result."""
    printer = EventPrinter(file or sys.stdout)
    result = None
    for event in events:
        printer.show(event)
        result = event.result or result
    printer.end()
    return result


class EventPrinter:
    """Prints events one by one.

    Args:
        file: Where to.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._inside_line = False

    def show(self, event: AgentEvent) -> None:
        """Print one event; most say one line, pieces of text go on with the line."""
        if event.restarted:
            self._line("(begins this step anew)")
        if event.text:
            # A model must not steer the terminal of whom it speaks to.
            self._file.write(event.text.replace("\x1b", "\\e"))
            self._file.flush()
            self._inside_line = not event.text.endswith("\n")
        if event.retrieval is not None:
            self._line(f"[memory] {event.retrieval.vector_db_ids}")
        if event.compaction is not None:
            self._line("[memory] earlier turns were summarised to make room")
        if event.tool_call is not None:
            self._line(f"[call] {event.tool_call.tool_name}({event.tool_call.arguments_json})")
        if event.tool_progress is not None and event.tool_progress.message:
            self._line(f"[tool] {event.tool_progress.message}")
        if event.tool_response is not None:
            said = text_of(event.tool_response.content)
            self._line(f"[result] {said if len(said) <= SHORT else said[:SHORT] + '...'}")
        if event.violation is not None and event.violation.violation_level == "error":
            self._line(f"[shield] {event.violation.user_message}")
        for one in event.pending:
            self._line(describe(one))

    def end(self) -> None:
        """End the last line."""
        if self._inside_line:
            self._file.write("\n")
            self._file.flush()
        self._inside_line = False

    def _line(self, text: str) -> None:
        self.end()
        self._file.write(text.replace("\x1b", "\\e") + "\n")
        self._file.flush()


def describe(one: Pending) -> str:
    """What waits, in one line."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in one.arguments.items())
    match one.kind:
        case "input":
            return f"[asks] {one.tool}: {one.message} (id {one.id})"
        case "lost":
            return f"[lost] nobody knows whether {one.tool}({arguments}) took effect (id {one.id})"
        case _:
            return f"[waits] {one.tool}({arguments}) needs your approval (id {one.id})"


def converse(agent: "Agent") -> None:
    """Ask and answer until Ctrl-D; Ctrl-C stops an answer."""
    print(f"{agent.config.model}   Ctrl-C stops an answer, Ctrl-D leaves")
    message: str | Answers | None = None
    while True:
        try:
            message = message or input("> ").strip()
            if not message:
                continue
            result = print_events(agent.stream(message))
            message = decide(result) if result is not None and result.pending else None
        except KeyboardInterrupt:
            message = None
            print()
        except StackError as error:
            message = None
            print(f"error: {error.message}", file=sys.stderr)
        except EOFError:
            print()
            return


def decide(result: AgentResult) -> Answers:
    """Ask the person at the terminal about everything that waits."""
    answers = Answers(turn_id=result.turn_id, pending=result.pending)
    for one in result.pending:
        if one.kind in {"input", "lost"}:
            answers = answers.answer(one.id, input(f"{describe(one)}\nanswer: "))
        elif input(f"{describe(one)}\nallow it? [y/N] ").strip().lower() in {"y", "yes"}:
            answers = answers.approve(one.id, by="the person at the terminal")
        else:
            answers = answers.deny(one.id, input("why not? "), by="the person at the terminal")
    return answers
