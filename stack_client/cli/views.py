"""What a person sees while the stack starts: a list on a terminal, plain lines in a pipe."""

import contextlib
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from stack_client.cli.options import on_terminal

_COLORS = {"ready": "green", "waiting": "yellow", "failed": "red", "died": "red", "draining": "dim"}


class ReadinessView:
    """Shows the state of each service as it changes."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[str, str]] = {}
        self._live = Live(console=Console(), refresh_per_second=8) if on_terminal() else None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._stack.enter_context(self._live)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def report(self, name: str, state: str, reason: str) -> None:
        """Show a new state."""
        if self._rows.get(name) == (state, reason):
            return
        was_ready = self._is_ready()
        self._rows[name] = (state, reason)
        if self._live is None:
            print(f"{name:<14} {state}{f': {reason}' if reason else ''}", flush=True)
            if self._is_ready() and not was_ready:
                print("all services are ready", flush=True)
            return
        table = Table.grid(padding=(0, 2))
        for row, (now, why) in self._rows.items():
            table.add_row(row, f"[{_COLORS.get(now, 'default')}]{now}", why)
        if self._is_ready():
            table.add_row("", "[dim]stop with Ctrl-C", "")
        self._live.update(table)

    def _is_ready(self) -> bool:
        return bool(self._rows) and all(state == "ready" for state, _ in self._rows.values())
