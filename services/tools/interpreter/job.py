"""What a tier is asked to do, and what it answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from services.tools.interpreter.output import Output

End = Literal["", "time", "fuel", "memory", "disk", "output", "died"]
"""How a call ended: by itself (""), or because it used too much of something; `died` is anything else."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """The folders of a call or session."""

    key: str
    """Names the session; empty for a call without one."""
    path: Path
    """Holds the three others."""

    @property
    def inbox(self) -> Path:
        """What the code gets; the sandbox cannot write it."""
        return self.path / "inbox"

    @property
    def state(self) -> Path:
        """Kept variables and results, written by the sandbox."""
        return self.path / "state"

    @property
    def work(self) -> Path:
        """The working folder, written by the sandbox."""
        return self.path / "work"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a call."""

    end: End = ""
    """How it ended."""
    detail: str = ""
    """What is known beyond that, for the log."""


class Unavailable(Exception):  # noqa: N818 (a state, not an accident)
    """A tier cannot run here; the text says why and what to do."""


class Tier(Protocol):
    """One kind of sandbox."""

    name: str
    """`wasm` or `native`."""
    figures: bool
    """Whether there are packages and figures."""

    async def run(self, room: Room, *, output: Output, seconds: float) -> Outcome:
        """Run what is in the room's inbox; cancelling it leaves no process of the call.

        Raises:
            Unavailable: If the tier cannot run here; nothing happened.
        """

    async def forget(self, key: str) -> None:
        """A session is gone: end what runs for it."""
