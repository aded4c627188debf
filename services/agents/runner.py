"""Turns in progress: starting, waiting in line, resuming, cancelling, and going on after a restart."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from llamastack import v1
from services.agents.config import AgentsConfig
from services.agents.database import StoreError
from services.agents.retrieval import Retrieval
from services.agents.rows import ENDED
from services.agents.store import AgentStore, TurnDeletedError
from services.agents.tool_results import take_results
from services.agents.turn import TurnLoop, cancel, fail
from services.agents.turn_log import TurnLog, beyond_the_end
from services.runtime.calls import detached
from stack_client.errors import FailedPreconditionError, InternalError, NotFoundError, StackError
from stack_client.inference import Inference

logger = logging.getLogger(__name__)

STOP_SECONDS = 5.0
"""How long a cancel waits for the turn's end; it comes later only where the store fails."""
STORE_RETRY_SECONDS = 0.1, 10.0
"""Shortest and longest pause between tries to store the end of a turn."""


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
        inference: The inference service.
        memory: The memory service.
        config: Bounds.
        tasks: Where turns run.
    """

    def __init__(
        self,
        store: AgentStore,
        *,
        inference: Inference,
        memory: Retrieval,
        config: AgentsConfig,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._store = store
        self._memory = memory
        self._inference = inference
        self._config = config
        self._tasks = tasks
        self._slots = asyncio.Semaphore(config.running_turns)
        self._running: dict[str, Run] = {}
        # Locks and events live as long as somebody holds or awaits them.
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._changes: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
        self._stopping = False

    async def recover(self) -> None:
        """Go on with the turns that the last process left."""
        for turn_id in await self._store.unfinished():
            logger.info("turn goes on after a restart turn=%s", turn_id)
            self.start(await self._store.turn(turn_id))

    def stop(self) -> None:
        """Leave running turns as they are, for the next process."""
        self._stopping = True
        for run in self._running.values():
            run.task.cancel()

    def changing(self, turn_id: str) -> asyncio.Lock:
        """Held by whoever changes a turn from outside: creates, resumes or cancels it."""
        return self._changing.setdefault(turn_id, asyncio.Lock())

    def start(self, turn: v1.Turn) -> None:
        """Run a stored turn in the background; it inherits no deadline of the call that starts it."""
        log = TurnLog(self._store, turn)
        task = self._tasks.create_task(self._run(turn.turn_id), context=detached())
        self._running[turn.turn_id] = Run(log=log, task=task)
        self._changed(turn.turn_id)

    async def _run(self, turn_id: str) -> None:
        run = self._running[turn_id]
        run.begun = True
        try:
            await self._take_steps(run)
            await self._store_end(run)
        except TurnDeletedError:
            logger.info("turn was deleted while it ran turn=%s", turn_id)
        finally:
            run.log.close()
            del self._running[turn_id]
            self._changed(turn_id)

    async def _take_steps(self, run: Run) -> None:
        """Run the loop; whatever ends it becomes the end of the turn, except a shutdown."""
        turn = run.log.turn
        try:
            async with self._slots:
                if not run.cancel_asked:
                    request, config, earlier = await self._store.turn_context(turn)
                    loop = TurnLoop(
                        run.log,
                        config=config,
                        request=request,
                        earlier=earlier,
                        inference=self._inference,
                        memory=self._memory,
                        limits=self._config,
                    )
                    await loop.run()
        except asyncio.CancelledError:
            if self._stopping or not run.cancel_asked:
                raise
        except TurnDeletedError:
            raise
        except StackError as error:
            fail(run.log, error)
        except Exception as error:  # the top of a turn: its watchers must learn of its end
            logger.exception("turn failed with an unexpected error turn=%s", turn.turn_id)
            fail(run.log, InternalError(f"internal error in turn {turn.turn_id}: {type(error).__name__}"))

    async def _store_end(self, run: Run) -> None:
        """Store the last events; a turn whose end cannot be stored goes on trying, or it would never end."""
        turn, (pause, longest) = run.log.turn, STORE_RETRY_SECONDS
        while True:
            if run.cancel_asked and turn.status not in ENDED:
                cancel(run.log)
            try:
                await run.log.commit()
                if turn.status in ENDED or not run.cancel_asked:
                    return
            except asyncio.CancelledError:
                if self._stopping or not run.cancel_asked:
                    raise
            except StoreError as error:
                logger.error("the end of a turn cannot be stored turn=%s: %s", turn.turn_id, error.message)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(pause)
                if self._stopping:
                    return
                pause = min(2 * pause, longest)

    async def events(self, turn_id: str, *, after: int) -> Sequence[v1.WatchTurnResponse]:
        """A turn's events after a sequence, as soon as there is one.

        Raises:
            NotFoundError: If there is no such turn.
            OutOfRangeError: If no event can come after `after`.
            UnavailableError: If the turn's events cannot be stored.
        """
        while True:
            change = self._changes.setdefault(turn_id, asyncio.Event())
            run = self._running.get(turn_id)
            fresh = await run.log.after(after) if run is not None else ()
            if fresh:
                return fresh
            stored = await self._store.events_after(turn_id, after)
            if stored.events:
                return stored.events
            if after > stored.last_sequence or stored.status in ENDED:
                raise beyond_the_end(turn_id, after, stored.last_sequence)
            if turn_id not in self._running:  # it waits for its caller
                await change.wait()

    async def resume(self, turn_id: str, responses: Sequence[v1.ToolResponse]) -> v1.Turn:
        """Take results of client tools; the turn goes on when the last one is there.

        Raises:
            NotFoundError: If there is no such turn or call.
            FailedPreconditionError: If a call has another result already, or the turn does not wait.
        """
        async with self.changing(turn_id):
            turn, run = await self._store.turn(turn_id), self._running.get(turn_id)
            if turn.status == v1.TURN_STATUS_AWAITING_INPUT and run is not None:  # it has said so and is about to leave
                await asyncio.wait([run.task])
                turn = await self._store.turn(turn_id)
            log = TurnLog(self._store, turn)
            if not take_results(log, responses):
                return turn
            await log.commit()
            answer = v1.Turn()
            answer.CopyFrom(turn)
            if answer.status == v1.TURN_STATUS_RUNNING:
                self.start(turn)
            return answer

    async def cancel(self, turn_id: str) -> v1.Turn:
        """End a turn that has not ended.

        Raises:
            NotFoundError: If there is none.
            FailedPreconditionError: If it has ended.
        """
        async with self.changing(turn_id):
            run = self._running.get(turn_id)
            if run is not None:
                run.cancel_asked = True
                if run.begun:
                    run.task.cancel()
                ended, _ = await asyncio.wait([run.task], timeout=STOP_SECONDS)
                if not ended:
                    return await self._store.turn(turn_id)
            turn = await self._store.turn(turn_id)
            if turn.status in ENDED and run is None:
                status = v1.TurnStatus.Name(turn.status).removeprefix("TURN_STATUS_").lower()
                raise FailedPreconditionError(f"turn {turn_id} has ended already; it is {status}")
            if turn.status not in ENDED:  # it waits for its caller
                log = TurnLog(self._store, turn)
                cancel(log)
                await log.commit()
                self._changed(turn_id)
            return turn

    async def delete_session(self, session_id: str, agent_id: str) -> None:
        """Cancel what has not ended, then delete.

        Raises:
            NotFoundError: If there is no such session, or none of this agent.
        """
        await self._store.session(session_id, agent_id)
        await self._cancel_all(await self._store.not_ended(session_id=session_id))
        self._drop(await self._store.delete_session(session_id, agent_id))

    async def delete_agent(self, agent_id: str) -> None:
        """Cancel what has not ended, then delete.

        Raises:
            NotFoundError: If there is no such agent.
        """
        await self._cancel_all(await self._store.not_ended(agent_id=agent_id))
        self._drop(await self._store.delete_agent(agent_id))

    async def _cancel_all(self, turn_ids: Sequence[str]) -> None:
        for turn_id in turn_ids:
            with contextlib.suppress(FailedPreconditionError, NotFoundError):  # it ended by itself in between
                await self.cancel(turn_id)

    def _drop(self, turn_ids: Sequence[str]) -> None:
        """Stop turns that are deleted: those that were created after the others were cancelled."""
        for turn_id in turn_ids:
            if turn_id in self._running:
                self._running[turn_id].task.cancel()
            self._changed(turn_id)

    def _changed(self, turn_id: str) -> None:
        """Wake the watchers of a turn that waited for its caller."""
        change = self._changes.pop(turn_id, None)
        if change is not None:
            change.set()
