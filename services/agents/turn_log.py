"""The events of a running turn: numbered, committed in groups, then shown to whoever watches."""

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from llamastack import v1
from services.agents.database import StoreError, to_the_end
from services.agents.rows import without_steps
from services.agents.turn_store import ChangedStep, Pin, TurnStore
from stack_client.errors import OutOfRangeError, UnavailableError

GATHERING_ROUNDS = 3
"""Rounds of the event loop that a group commit waits for what comes at the same time; they take microseconds."""


class TurnLog:
    """Writer of one turn's events and the place where its watchers wait.

    Args:
        store: The durable log.
        turn: With its steps; changed here as the turn goes on.
        fence: As it was when this process took the turn.
        published: Told the turn after every commit of events.
    """

    def __init__(
        self, store: TurnStore, turn: v1.Turn, *, fence: int, published: Callable[[str], None] = lambda _: None
    ) -> None:
        self._store = store
        self.turn = turn
        self.fence = fence
        self._published = published
        self.first_sequence = turn.last_sequence + 1
        self.committed: list[v1.WatchTurnResponse] = []
        """Events since `first_sequence`; what came before is in the store only."""
        self._pending: list[v1.WatchTurnResponse] = []
        self._changed: dict[int, ChangedStep] = {}
        self._pinned: list[Pin] = []
        self._committing = asyncio.Lock()
        self._added = asyncio.Event()
        self._news = asyncio.Event()
        self._trouble: StoreError | None = None
        self.closed = False

    def add(self, **event: object) -> None:
        """Add the next event; it is committed by the next `commit`, whoever calls it."""
        self.turn.last_sequence += 1
        message = v1.WatchTurnResponse(sequence=self.turn.last_sequence, **event)  # type: ignore[arg-type]
        member = getattr(message, message.WhichOneof("event") or "")
        if "turn" in member.DESCRIPTOR.fields_by_name:
            member.turn.last_sequence = message.sequence
        self._pending.append(message)
        self._added.set()

    def put_step(self, step: v1.Step) -> None:
        """Add a step or replace the one of the same id."""
        steps = self.turn.steps
        place = next((at for at in range(len(steps) - 1, -1, -1) if steps[at].step_id == step.step_id), len(steps))
        if place == len(steps):
            steps.add()
        if steps[place] is not step:
            steps[place].CopyFrom(step)
        # As it is now: what happens to the step until it is written belongs to events that are not committed with it.
        self._changed[place] = ChangedStep(place=place, step_id=step.step_id, message=step.SerializeToString())

    def pin(self, pin: Pin) -> None:
        """Keep what the turn goes by, with the next commit."""
        self._pinned.append(pin)

    async def committing(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work`, with commits beside it that each take what has gathered.

        Raises:
            BaseException: What `work` or a commit raised.
        """
        try:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self.keep_committing())
                await work
                keeper.cancel()
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def keep_committing(self) -> None:
        """Commit whenever something was added, each time all that has gathered; runs until cancelled."""
        while True:
            await self._added.wait()
            for _ in range(GATHERING_ROUNDS):
                await asyncio.sleep(0)
            self._added.clear()
            await self.commit()

    async def commit(self, *, through_power_loss: bool = False) -> None:
        """Store what was added, then show it. Callers that come while a commit runs share the next one.

        Args:
            through_power_loss: As `TurnStore.write` means it.

        Raises:
            StoreError: If nothing could be stored; the next commit tries again with all of it.
            TurnDeletedError: If the turn was deleted.
            TurnFencedError: If another process took the turn over.
        """
        # Half a commit would leave a hole in the sequences.
        await to_the_end(self._commit(through_power_loss=through_power_loss))

    async def _commit(self, *, through_power_loss: bool) -> None:
        async with self._committing:
            if not self._pending and not self._changed:
                return
            events, self._pending = self._pending, []
            changed, self._changed = self._changed, {}
            pinned, self._pinned = self._pinned, []
            # Text comes often and changes nothing but the log; the turn may be large, so it is not written with text.
            only_text = events and not changed and all(e.WhichOneof("event") == "step_progress" for e in events)
            turn = None if only_text else without_steps(self.turn)
            try:
                await self._store.append(
                    turn,
                    events,
                    turn_id=self.turn.turn_id,
                    fence=self.fence,
                    changed=list(changed.values()),
                    pinned=pinned,
                    through_power_loss=through_power_loss,
                )
            except StoreError as error:
                self._pending = [*events, *self._pending]
                self._changed = {**changed, **self._changed}
                self._pinned = [*pinned, *self._pinned]
                self._show([], trouble=error)
                raise
            self._show(events)

    def _show(self, events: Sequence[v1.WatchTurnResponse], *, trouble: StoreError | None = None) -> None:
        self._trouble = trouble
        self.committed += events
        news, self._news = self._news, asyncio.Event()
        news.set()
        if events:
            self._published(self.turn.turn_id)

    async def attempts(self, step_id: str) -> int:
        """How often a step was begun."""
        stored = (await self._store.events_after(self.turn.turn_id, 0)).events
        return sum(step_id in {event.step_start.step_id, event.step_restarted.step_id} for event in stored)

    def close(self) -> None:
        """Nothing more will be written by this run of the turn."""
        self.closed = True
        self._news.set()

    async def after(self, sequence: int) -> Sequence[v1.WatchTurnResponse]:
        """Events after `sequence`, as soon as there is one; empty when the run is over and there is none.

        Raises:
            OutOfRangeError: If no event has that sequence yet, so that nobody can have seen it.
            UnavailableError: If events wait that cannot be stored.
        """
        while True:
            news = self._news
            if sequence + 1 < self.first_sequence:
                # Not beyond: the store may have events already that are not shown yet, because their commit just ended.
                older = (await self._store.events_after(self.turn.turn_id, sequence)).events
                return [event for event in older if event.sequence < self.first_sequence]
            fresh = self.committed[sequence + 1 - self.first_sequence :]
            if fresh or self.closed:
                return fresh
            last = self.first_sequence - 1 + len(self.committed)
            if sequence > last:
                raise beyond_the_end(self.turn.turn_id, sequence, last)
            if self._trouble is not None:
                message = f"events of turn {self.turn.turn_id} cannot be stored now: {self._trouble.message}"
                raise UnavailableError(message, retry_after=1.0)
            await news.wait()


def beyond_the_end(turn_id: str, sequence: int, last: int) -> OutOfRangeError:
    """The error for a watcher who asks for what cannot come."""
    message = f"the last event of turn {turn_id} is {last}, nothing follows {sequence}; watch from below {last}"
    return OutOfRangeError(message, field="resume_after_sequence")


def new_step(turn: v1.Turn, kind: "v1.StepType.ValueType", **details: Message) -> v1.Step:
    """A step that begins now; it is not yet part of the turn."""
    return v1.Step(
        step_id=str(uuid.uuid4()),
        turn_id=turn.turn_id,
        step_type=kind,
        started_at=now(),
        **details,  # type: ignore[arg-type]
    )


def now() -> Timestamp:
    """The time."""
    nanoseconds = time.time_ns()
    return Timestamp(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)
