"""The events of a running turn: numbered, committed in groups, then shown to whoever watches."""

import asyncio
from collections.abc import Sequence

from llamastack import v1
from services.agents.store import AgentStore


class TurnLog:
    """Writer of one turn's events and the place where its watchers wait.

    Args:
        store: The durable log.
        turn: With its steps; changed here as the turn goes on.
    """

    def __init__(self, store: AgentStore, turn: v1.Turn) -> None:
        self._store = store
        self.turn = turn
        self.first_sequence = turn.last_sequence + 1
        self.committed: list[v1.WatchTurnResponse] = []
        """Events since `first_sequence`; what came before is in the store only."""
        self._pending: list[v1.WatchTurnResponse] = []
        self._changed: dict[int, v1.Step] = {}
        self._committing = asyncio.Lock()
        self._news = asyncio.Event()
        self.cancel_asked = False
        self.closed = False

    def add(self, **event: object) -> None:
        """Add the next event; it is committed by the next `commit`, whoever calls it."""
        self.turn.last_sequence += 1
        message = v1.WatchTurnResponse(sequence=self.turn.last_sequence, **event)  # type: ignore[arg-type]
        member = getattr(message, message.WhichOneof("event") or "")
        if member.DESCRIPTOR.fields_by_name.get("turn") is not None:
            member.turn.last_sequence = message.sequence
        self._pending.append(message)

    def put_step(self, step: v1.Step) -> None:
        """Add a step or replace the one of the same id."""
        for place, known in enumerate(self.turn.steps):
            if known.step_id == step.step_id:
                known.CopyFrom(step)
                self._changed[place] = step
                return
        self._changed[len(self.turn.steps)] = step
        self.turn.steps.append(step)

    async def commit(self) -> None:
        """Store what was added, then show it. Callers that come while a commit runs share the next one."""
        async with self._committing:
            if not self._pending and not self._changed:
                return
            events, self._pending = self._pending, []
            changed, self._changed = self._changed, {}
            await self._store.append(self.turn, events, changed=sorted(changed.items()))
            self.committed += events
            news, self._news = self._news, asyncio.Event()
            news.set()

    def close(self) -> None:
        """Nothing more will be written by this run of the turn."""
        self.closed = True
        self._news.set()

    async def after(self, sequence: int) -> Sequence[v1.WatchTurnResponse]:
        """Events after `sequence`, as soon as there is one; empty when the run is over and there is none."""
        while True:
            news = self._news
            if sequence + 1 < self.first_sequence:
                return await self._store.events_after(self.turn.turn_id, sequence)
            fresh = self.committed[sequence + 1 - self.first_sequence :]
            if fresh or self.closed:
                return fresh
            await news.wait()
