"""Showing an answer while it is written: as it is in a pipe, with a summary for a person."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console

from llamastack import v1
from stack_client.cli.options import on_terminal

_ENDS = {v1.FINISH_REASON_LENGTH: "cut off at its length", v1.FINISH_REASON_CONTENT_FILTER: "blocked by a shield"}


class AnswerView:
    """Prints pieces as they come; use it in a `with` block around the whole answer."""

    def __init__(self) -> None:
        self.text = ""
        """What was printed so far."""
        self._console = Console(highlight=False) if on_terminal() else None
        self._waiting = self._console.status("") if self._console else None
        self._started = time.monotonic()
        self._inside_line = False

    def __enter__(self) -> Self:
        if self._waiting:
            self._waiting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop_waiting()
        self._end_line()

    def show(self, piece: str) -> None:
        """Print a piece of the answer."""
        if not piece:
            return
        self._stop_waiting()
        self.text += piece
        self._inside_line = not piece.endswith("\n")
        # A model must not steer the terminal of whom it speaks to.
        sys.stdout.write(piece.replace("\x1b", "\\e") if self._console else piece)
        sys.stdout.flush()

    def show_end(self, finish: "v1.FinishReason.ValueType", usage: v1.Usage) -> None:
        """Tell a person how the answer ended; a pipe gets the answer alone, and stderr a line if it was cut."""
        how = _ENDS.get(finish, "")
        self._end_line()
        if self._console is None:
            if how:
                print(f"the answer was {how}", file=sys.stderr)
            return
        seconds = time.monotonic() - self._started
        facts = [f"{usage.completion_tokens} tokens", f"{seconds:.1f} s", *([how] if how else [])]
        self._console.print(f"[dim]{', '.join(facts)}[/dim]")

    def _end_line(self) -> None:
        if self._inside_line:
            print(flush=True)
        self._inside_line = False

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._waiting.stop()
            self._waiting = None
