"""Turns in progress: starting, waiting in line, resuming, cancelling, and going on after a process has ended."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from llamastack import v1
from services.agents import decisions
from services.agents.agent_calls import AgentCalls, Brought, cancel_nested, forward
from services.agents.database import StoreError
from services.agents.leases import ACTIVE, Held
from services.agents.notices import FanOut, Notices
from services.agents.rows import ENDED
from services.agents.speaker import Speakers
from services.agents.store import AgentStore
from services.agents.turn import Around, TurnLoop, cancel, fail
from services.agents.turn_log import TurnLog, beyond_the_end
from services.agents.turn_store import TurnDeletedError, TurnFencedError
from services.runtime.calls import detached, note
from services.runtime.telemetry import SpanOfWork, no_span
from stack_client.errors import FailedPreconditionError, InternalError, NotFoundError, StackError

logger = logging.getLogger(__name__)

STOP_SECONDS = 5.0
"""How long a cancel waits for the turn's end; it comes later only where the store fails or another replica runs it."""
STORE_RETRY_SECONDS = 0.1, 10.0
"""Shortest and longest pause between tries to store the end of a turn."""
CLAIMED_AT_ONCE = 64
_LOST = (TurnDeletedError, TurnFencedError)


@dataclass(kw_only=True)
class Run:
    """A turn on this process."""

    log: TurnLog
    task: asyncio.Task[None]
    begun: bool = False
    """Whether the task has taken its first step; one that has not would vanish when cancelled."""
    cancel_asked: bool = False


class TurnRunner:
    """Runs turns as tasks of the service; no call owns them, so callers come and go.

    Args:
        store: The durable log.
        around: What turns work with.
        notices: Wakes watchers in this process.
        fan_out: Tells other replicas.
        tasks: Where turns run.
    """

    def __init__(
        self,
        store: AgentStore,
        *,
        around: Around,
        notices: Notices,
        fan_out: FanOut,
        tasks: asyncio.TaskGroup,
        span: SpanOfWork = no_span,
    ) -> None:
        self._store = store
        self._span = span
        self._around = around
        self._limits = around.limits
        self._notices = notices
        self._fan_out = fan_out
        self._tasks = tasks
        self._speakers = Speakers(store, around.toolbox)
        self._slots = asyncio.Semaphore(around.limits.running_turns)
        self._running: dict[str, Run] = {}
        # Locks live as long as somebody holds or awaits them.
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.stopping = False
        """Whether turns are left as they are, for the next process."""

    async def recover(self) -> None:
        """Go on with turns that nobody runs: their process has ended, or what they waited for is overdue."""
        for held in await self._store.claim_orphans(seconds=self._limits.lease_seconds, limit=CLAIMED_AT_ONCE):
            logger.info("turn is taken over turn=%s", held.turn_id)
            with contextlib.suppress(NotFoundError):
                self.start(await self._store.turn(held.turn_id), fence=held.fence, tenant=held.tenant)

    async def keep_leases(self) -> None:
        """Renew the leases of this process, hear of cancels, take over what others left; runs until cancelled."""
        while True:
            await asyncio.sleep(self._limits.lease_seconds / 3)
            try:
                self._check(await self._store.renew(seconds=self._limits.lease_seconds))
                await self.recover()
            except StoreError as error:
                logger.error("leases cannot be renewed: %s", error.message)

    def _check(self, held: Sequence[Held]) -> None:
        """Stop what this process does not hold any more, and what is to be cancelled."""
        fences = {one.turn_id: one.fence for one in held}
        for turn_id, run in list(self._running.items()):
            active = run.log.turn.status in ACTIVE
            if active and turn_id in fences and fences[turn_id] != run.log.fence:
                logger.warning("turn was taken over by another process turn=%s", turn_id)
                run.task.cancel()
        for one in held:
            if one.cancel_asked and one.turn_id in self._running:
                self._stop(self._running[one.turn_id])

    async def stop(self) -> None:
        """Leave running turns as they are, for the next process."""
        self.stopping = True
        runs = list(self._running.values())
        for run in runs:
            run.task.cancel()
        if runs:
            await asyncio.wait([run.task for run in runs])
        with contextlib.suppress(StoreError):
            await self._store.release_all()

    def changing(self, turn_id: str) -> asyncio.Lock:
        """Held by whoever changes a turn from outside: creates, resumes or cancels it."""
        return self._changing.setdefault(turn_id, asyncio.Lock())

    def start(self, turn: v1.Turn, *, fence: int, tenant: str | None = None) -> None:
        """Run a stored turn in the background; it inherits no deadline of the call that starts it.

        Args:
            turn: With its steps.
            fence: As it was when this process took the turn.
            tenant: For whom it calls others; None: for whom the current call is made.
        """
        log = self._log(turn, fence)
        task = self._tasks.create_task(self._run(turn.turn_id), context=detached(tenant=tenant))
        self._running[turn.turn_id] = Run(log=log, task=task)
        self._notices.wake(turn.turn_id)

    @property
    def lease(self) -> dict[str, Any]:
        """What `add_turn` is told of a turn that this process runs."""
        return {"owner": self._store.owner, "lease_seconds": self._limits.lease_seconds}

    async def stored(self, turn_id: str) -> v1.Turn:
        """A turn as it stands; raises NotFoundError."""
        return await self._store.turn(turn_id)

    def _log(self, turn: v1.Turn, fence: int) -> TurnLog:
        return TurnLog(self._store, turn, fence=fence, published=self._fan_out.publish)

    async def _run(self, turn_id: str) -> None:
        run = self._running[turn_id]
        run.begun = True
        turn = run.log.turn
        try:
            with self._span("agents.turn", llamastack__turn_id=turn_id, llamastack__session_id=turn.session_id):
                await self._take_steps(run)
                await self._store_end(run)
                note(llamastack__turn_status=v1.TurnStatus.Name(turn.status).removeprefix("TURN_STATUS_").lower())
        except _LOST as error:
            logger.info("turn is not run here any more turn=%s: %s", turn_id, error.message)
        finally:
            run.log.close()
            if self._running.get(turn_id) is run:
                del self._running[turn_id]
            self._notices.wake(turn_id)

    async def _take_steps(self, run: Run) -> None:
        """Run the loop; whatever ends it becomes the end of the turn, except a shutdown."""
        turn = run.log.turn
        # A turn that answers a call holds no slot: the turn that asks has one, and waits.
        slot = contextlib.nullcontext() if turn.parent_turn_id else self._slots
        try:
            async with slot:
                if not run.cancel_asked:
                    await self._loop(run.log)
        except asyncio.CancelledError:
            if self.stopping or not run.cancel_asked:
                raise
        except _LOST:
            raise
        except StackError as error:
            fail(run.log, error)
        except Exception as error:  # the top of a turn: its watchers must learn of its end
            logger.exception("turn failed with an unexpected error turn=%s", turn.turn_id)
            fail(run.log, InternalError(f"internal error in turn {turn.turn_id}: {type(error).__name__}"))

    async def _loop(self, log: TurnLog) -> None:
        context = await self._store.turn_context(log.turn)
        agents = AgentCalls(self._store, self, log)
        loop = TurnLoop(
            log,
            context=context,
            earlier=await self._store.earlier(log.turn.session_id, context.number) if context.begun else [],
            speakers=self._speakers,
            around=self._around,
            agents=agents,
        )
        await loop.run()

    async def _store_end(self, run: Run) -> None:
        """Store the last events; a turn whose end cannot be stored goes on trying, or it would never end."""
        turn, (pause, longest) = run.log.turn, STORE_RETRY_SECONDS
        while True:
            try:
                if turn.status not in ENDED and run.cancel_asked and not self.stopping:
                    cancel(run.log)
                await run.log.commit()
                return
            except asyncio.CancelledError:
                if self.stopping or not run.cancel_asked:
                    raise
            except StoreError as error:
                logger.error("the end of a turn cannot be stored turn=%s: %s", turn.turn_id, error.message)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(pause)
                if self.stopping:
                    return
                pause = min(2 * pause, longest)

    async def events(self, turn_id: str, *, after: int, tenant: str | None = None) -> Sequence[v1.WatchTurnResponse]:
        """A turn's events after a sequence, as soon as there is one.

        Raises:
            NotFoundError: If there is no such turn.
            OutOfRangeError: If no event can come after `after`.
            UnavailableError: If the turn's events cannot be stored.
        """
        while True:
            change = self._notices.change(turn_id)
            run = self._running.get(turn_id)
            fresh = await run.log.after(after) if run is not None else ()
            if fresh:
                return fresh
            stored = await self._store.events_after(turn_id, after, tenant=tenant)
            if stored.events:
                return stored.events
            if after > stored.last_sequence or stored.status in ENDED:
                raise beyond_the_end(turn_id, after, stored.last_sequence)
            if turn_id not in self._running:  # another replica runs it, or it waits for its caller
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.watch_seconds):
                        await change.wait()

    async def resume(self, turn_id: str, brought: Brought) -> v1.Turn:
        """Take results of client tools and decisions; the turn goes on when nothing that it waits for is left.

        Raises:
            NotFoundError: If there is no such turn or call.
            FailedPreconditionError: If a call has another result or decision already, or the turn does not wait.
            InvalidArgumentError: If a decision does not fit what its call waits for.
        """
        async with self.changing(turn_id):
            while True:
                turn, fence = await self._store.turn_and_fence(turn_id)
                run = self._running.get(turn_id)
                if turn.status not in ACTIVE and run is not None:  # it has said so and is about to leave
                    await asyncio.wait([run.task])
                    continue
                brought = await forward(self, turn, brought)
                log = self._log(turn, fence)
                if not decisions.take(log, brought.responses, brought.decisions, woken=brought.woken):
                    return turn
                claimed = await self._store.claim(turn_id, seconds=self._limits.lease_seconds, seen=fence)
                if claimed is None:
                    continue  # somebody else changed it meanwhile
                log.fence = claimed
                await log.commit()
                self._notices.wake(turn_id)
                answer = v1.Turn()
                answer.CopyFrom(turn)
                if answer.status == v1.TURN_STATUS_RUNNING:
                    self.start(turn, fence=claimed)
                return answer

    async def cancel(self, turn_id: str) -> v1.Turn:
        """End a turn that has not ended, with the turns of other agents that answer its calls.

        Raises:
            NotFoundError: If there is none.
            FailedPreconditionError: If it has ended.
        """
        async with self.changing(turn_id):
            run = self._running.get(turn_id)
            if run is not None:
                self._stop(run)
                ended, _ = await asyncio.wait([run.task], timeout=STOP_SECONDS)
                if not ended:
                    return await self._store.turn(turn_id)
            turn, fence = await self._store.turn_and_fence(turn_id)
            if turn.status in ENDED and run is None:
                status = v1.TurnStatus.Name(turn.status).removeprefix("TURN_STATUS_").lower()
                raise FailedPreconditionError(f"turn {turn_id} has ended already; it is {status}")
            if turn.status in ENDED:
                return turn
            if turn.status in ACTIVE:  # another replica runs it
                return await self._cancel_elsewhere(turn_id)
            claimed = await self._store.claim(turn_id, seconds=self._limits.lease_seconds, seen=fence)
            if claimed is None:
                return await self._cancel_elsewhere(turn_id)
            log = self._log(turn, claimed)
            await cancel_nested(self, turn)
            cancel(log)
            await log.commit()
            self._notices.wake(turn_id)
            return turn

    def _stop(self, run: Run) -> None:
        run.cancel_asked = True
        if run.begun:
            run.task.cancel()

    async def _cancel_elsewhere(self, turn_id: str) -> v1.Turn:
        """Ask the replica that runs a turn to cancel it, and wait a while for that."""
        await self._store.ask_cancel(turn_id)
        self._fan_out.publish(turn_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                while True:
                    change = self._notices.change(turn_id)
                    turn = await self._store.turn(turn_id)
                    if turn.status in ENDED:
                        return turn
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._limits.watch_seconds):
                            await change.wait()
        return await self._store.turn(turn_id)

    async def delete_session(self, session_id: str, agent_id: str, *, tenant: str) -> None:
        """Cancel what has not ended, then delete.

        Raises:
            NotFoundError: If there is no such session, or none of this agent.
        """
        await self._store.session(session_id, agent_id, tenant=tenant)
        await self._cancel_all(await self._store.not_ended(session_id=session_id))
        self._drop(await self._store.delete_session(session_id, agent_id, tenant=tenant))

    async def delete_agent(self, agent_id: str, *, tenant: str) -> None:
        """Cancel what has not ended, then delete.

        Raises:
            NotFoundError: If there is no such agent.
        """
        await self._store.agent(agent_id, tenant=tenant)
        await self._cancel_all(await self._store.not_ended(agent_id=agent_id))
        self._drop(await self._store.delete_agent(agent_id, tenant=tenant))

    async def _cancel_all(self, turn_ids: Sequence[str]) -> None:
        for turn_id in turn_ids:
            with contextlib.suppress(FailedPreconditionError, NotFoundError):  # it ended by itself in between
                await self.cancel(turn_id)

    def _drop(self, turn_ids: Sequence[str]) -> None:
        """Stop turns that are deleted: those that were created after the others were cancelled."""
        for turn_id in turn_ids:
            if turn_id in self._running:
                self._running[turn_id].task.cancel()
            self._notices.wake(turn_id)
