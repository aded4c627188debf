"""Whether a service can take calls, and what it waits for."""

import asyncio
from typing import Literal

State = Literal["starting", "ready", "failed", "draining"]


class Readiness:
    """The observable state of one service; used on the event loop only.

    Attributes:
        state: `starting`, `ready`, `failed` or, set by the runtime, `draining`.
        reason: What it waits for, or why it failed; empty when ready.
        details: Facts for `stack status`, for example `{"models": "smollm2-135m"}`.
    """

    def __init__(self, *, name: str) -> None:
        self.name = name
        self.state: State = "starting"
        self.reason = "starting"
        self.details: dict[str, str] = {}
        self._changed = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether calls are welcome now."""
        return self.state == "ready"

    def waiting(self, reason: str) -> None:
        """Not ready yet, or no longer; `reason` such as `loading smollm2-135m` is shown to people."""
        self._set("starting", reason)

    def ready(self) -> None:
        """Ready to take calls."""
        self._set("ready", "")

    def failed(self, reason: str) -> None:
        """Will not become ready without help; `reason` says what to do."""
        self._set("failed", reason)

    def draining(self) -> None:
        """Set by the runtime: the process is going away; this state is final."""
        self._set("draining", "shutting down")

    async def next_change(self) -> None:
        """Return when the state or its reason has changed."""
        await self._changed.wait()

    async def wait(self) -> State:
        """Return the state once it is no longer `starting`."""
        while self.state == "starting":
            await self.next_change()
        return self.state

    def _set(self, state: State, reason: str) -> None:
        if self.state == "draining" or (self.state, self.reason) == (state, reason):
            return
        self.state, self.reason = state, reason
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
