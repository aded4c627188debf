"""Turns in progress: starting, waiting in line, resuming, cancelling, and going on after a restart."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from llamastack import v1
from services.agents.config import AgentsConfig
from services.agents.store import ENDED, AgentStore
from services.agents.turn import TurnLoop, complete_tools, waiting_calls
from services.agents.turn_log import TurnLog
from stack_client.errors import FailedPreconditionError, NotFoundError, OutOfRangeError
from stack_client.inference import Inference

logger = logging.getLogger(__name__)


class TurnRunner:
    """Runs turns as tasks of the service; no call owns them, so callers come and go.

    Args:
        store: The durable log.
        inference: The inference service.
        config: Bounds.
        tasks: Where turns run.
    """

    def __init__(
        self, store: AgentStore, *, inference: Inference, config: AgentsConfig, tasks: asyncio.TaskGroup
    ) -> None:
        self._store = store
        self._inference = inference
        self._config = config
        self._tasks = tasks
        self._slots = asyncio.Semaphore(config.running_turns)
        self._logs: dict[str, TurnLog] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._resuming = asyncio.Lock()
        self._started = asyncio.Event()

    async def recover(self) -> None:
        """Go on with the turns that the last process left."""
        for turn_id in await self._store.unfinished():
            logger.info("turn goes on after a restart turn=%s", turn_id)
            self.start(await self._store.turn(turn_id))

    def stop(self) -> None:
        """Leave running turns as they are, for the next process."""
        for task in self._running.values():
            task.cancel()

    def start(self, turn: v1.Turn) -> None:
        """Run a stored turn in the background."""
        log = TurnLog(self._store, turn)
        self._logs[turn.turn_id] = log
        self._running[turn.turn_id] = self._tasks.create_task(self._run(log))
        started, self._started = self._started, asyncio.Event()
        started.set()

    async def _run(self, log: TurnLog) -> None:
        turn = log.turn
        try:
            async with self._slots:
                request = await self._store.turn_request(turn.turn_id)
                agent = await self._store.agent(request.agent_id)
                earlier = [
                    other
                    for _, other in await self._store.list_turns(turn.session_id)
                    if other.turn_id != turn.turn_id and other.status in ENDED
                ]
                loop = TurnLoop(
                    log,
                    config=agent.agent_config,
                    request=request,
                    earlier=earlier,
                    inference=self._inference,
                    max_infer_iters=self._config.max_infer_iters,
                    inference_attempts=self._config.inference_attempts,
                )
                await loop.run()
        except NotFoundError:
            logger.info("turn was deleted while it ran turn=%s", turn.turn_id)
        except asyncio.CancelledError:
            if not log.cancel_asked:
                raise
            if turn.status not in ENDED:  # cancelled while it waited in line, before the loop could see it
                turn.status = v1.TURN_STATUS_CANCELLED
                log.add(turn_cancelled=v1.TurnCancelled(turn=turn))
                await log.commit()
        finally:
            log.close()
            del self._running[turn.turn_id]
            del self._logs[turn.turn_id]

    async def events(self, turn_id: str, *, after: int) -> Sequence[v1.WatchTurnResponse]:
        """A turn's events after a sequence, as soon as there is one.

        Raises:
            NotFoundError: If there is no such turn.
            OutOfRangeError: If the turn has ended and no event comes after `after`.
        """
        while True:
            started = self._started
            log = self._logs.get(turn_id)
            fresh = await log.after(after) if log is not None else await self._store.events_after(turn_id, after)
            if fresh:
                return fresh
            if turn_id in self._logs:
                continue
            turn = await self._store.turn(turn_id)
            if turn.last_sequence > after:
                continue
            if turn.status in ENDED:
                message = f"turn {turn_id} has ended; its last event is {turn.last_sequence}, nothing follows {after}"
                raise OutOfRangeError(message, reason="INVALID_VALUE", field="resume_after_sequence")
            await started.wait()  # it waits for its caller; resuming starts it

    async def resume(self, turn_id: str, responses: Sequence[v1.ToolResponse]) -> v1.Turn:
        """Take results of client tools; the turn goes on when the last one is there.

        Raises:
            NotFoundError: If there is no such turn or call.
            FailedPreconditionError: If a call has another result already, or the turn does not wait.
        """
        async with self._resuming:
            turn = await self._store.turn(turn_id)
            step = turn.steps[-1] if turn.steps else v1.Step()
            if _all_known(turn, responses):
                return turn
            if turn.status != v1.TURN_STATUS_AWAITING_INPUT:
                status = v1.TurnStatus.Name(turn.status).removeprefix("TURN_STATUS_").lower()
                raise FailedPreconditionError(f"turn {turn_id} does not wait for tool results; it is {status}")
            waiting = {call.call_id: call for call in waiting_calls(step)}
            for response in responses:
                if response.call_id in waiting:
                    step.tool_execution.tool_responses.append(response)
                    step.tool_execution.tool_responses[-1].tool_name = waiting[response.call_id].tool_name
                elif response.call_id not in {call.call_id for call in step.tool_execution.tool_calls}:
                    names = ", ".join(waiting)
                    raise NotFoundError(f"turn {turn_id} has no call {response.call_id!r}; it waits for: {names}")
            log = TurnLog(self._store, turn)
            stored = v1.Step()
            stored.CopyFrom(step)
            if not waiting_calls(stored):
                complete_tools(log, stored)
                turn.status = v1.TURN_STATUS_RUNNING
                turn.ClearField("output_message")
            log.put_step(stored)
            await log.commit()
            log.close()
            if turn.status == v1.TURN_STATUS_RUNNING:
                self.start(turn)
            return turn

    async def cancel(self, turn_id: str) -> v1.Turn:
        """End a turn that has not ended.

        Raises:
            NotFoundError: If there is none.
            FailedPreconditionError: If it has ended.
        """
        turn = await self._store.turn(turn_id)
        if turn.status in ENDED:
            status = v1.TurnStatus.Name(turn.status).removeprefix("TURN_STATUS_").lower()
            raise FailedPreconditionError(f"turn {turn_id} has ended already; it is {status}")
        task = self._running.get(turn_id)
        if task is not None:
            self._logs[turn_id].cancel_asked = True
            task.cancel()
            await asyncio.wait([task])
        else:  # it waits for its caller
            log = TurnLog(self._store, turn)
            turn.status = v1.TURN_STATUS_CANCELLED
            log.add(turn_cancelled=v1.TurnCancelled(turn=turn))
            await log.commit()
        return await self._store.turn(turn_id)

    async def forget(self, session_id: str) -> None:
        """Cancel what runs in a session that is about to be deleted."""
        for _, turn in await self._store.list_turns(session_id):
            if turn.turn_id in self._running:
                with contextlib.suppress(FailedPreconditionError):  # it ended by itself in between
                    await self.cancel(turn.turn_id)


def _all_known(turn: v1.Turn, responses: Sequence[v1.ToolResponse]) -> bool:
    """Whether every response repeats one that is stored.

    Raises:
        FailedPreconditionError: If one contradicts a stored one.
    """
    stored = {response.call_id: response for step in turn.steps for response in step.tool_execution.tool_responses}
    for response in responses:
        known = stored.get(response.call_id)
        if known is not None and known.content != response.content:
            message = f"call {response.call_id} of turn {turn.turn_id} was answered before with other content"
            raise FailedPreconditionError(message)
    return bool(responses) and all(response.call_id in stored for response in responses)
