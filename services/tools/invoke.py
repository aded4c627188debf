"""The general part of calls: one execution per key, stored results, and a record of everything that was asked."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from llamastack import v1
from services.runtime.calls import current_call, current_tenant, detached
from services.tools.audit import Audit, Entry
from services.tools.execution import Execution, check_digest, entry
from services.tools.faults import FaultError
from services.tools.ledger import Ledger, Row, may_run
from services.tools.metrics import ToolMetrics
from services.tools.outputs import Outputs
from services.tools.planning import Plan, Planner, check_approval
from services.tools.running import Running
from stack_client.content import content
from stack_client.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    StackError,
    UnavailableError,
)


class Invoker:
    """Runs calls.

    Args:
        planner: Decides about a call.
        execution: Runs one.
        ledger: Stores calls.
        audit: Records them.
        outputs: Keeps long ones.
        metrics: Counts them.
        tasks: In which they run.
    """

    def __init__(
        self,
        *,
        planner: Planner,
        execution: Execution,
        ledger: Ledger,
        audit: Audit,
        outputs: Outputs,
        metrics: ToolMetrics,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._planner = planner
        self._execution = execution
        self._ledger = ledger
        self._audit = audit
        self._outputs = outputs
        self._metrics = metrics
        self._tasks = tasks
        self._running: dict[tuple[str, str], Running] = {}

    async def begin(self, request: v1.InvokeToolRequest) -> Running:
        """Begin a call, or join the one that runs under its key, or find the result that it had.

        Raises:
            NotFoundError: If there is no such tool.
            InvalidArgumentError: If a field is wrong; REQUEST_ID_REUSED: the key names a call with other arguments.
            FailedPreconditionError: If the call needs an approval that was not given.
        """
        try:
            plan = await self._planner.plan(request)
        except FaultError as error:
            await self._note(request, outcome="invalid", code=int(error.fault))
            return _ended(error.result(), key=request.idempotency_key, tool_name=request.tool_name)
        except NotFoundError:
            await self._note(request, outcome="unknown")
            raise
        known = self._joined(plan) or await self._replayed(plan)
        if known is not None:
            return known
        try:
            check_approval(plan)
            arguments = await self._planner.arguments(plan)
        except FailedPreconditionError:
            await self._record(plan, outcome="refused")
            raise
        except FaultError as error:
            await self._record(plan, outcome="invalid", code=int(error.fault))
            return _ended(error.result(), key=plan.key, tool_name=plan.tool_name)
        access = await self._planner.access(plan)
        joined = self._joined(plan)  # begun while we looked
        if joined is not None:
            return joined
        running = Running(
            key=plan.key, tool_name=plan.tool_name, digest=plan.digest, keyed=bool(request.idempotency_key)
        )
        self._running[plan.tenant, plan.key] = running
        work = self._execution.run(plan, running, arguments=arguments, access=access)
        running.task = self._tasks.create_task(self._run(plan, running, work), context=detached())
        return running

    async def get(self, key: str, *, full_output: bool = False) -> v1.Invocation:
        """A call by its key.

        Raises:
            NotFoundError: If there is none, or it is older than a day.
        """
        tenant = current_tenant()
        row = await self._ledger.get(tenant, key)
        if row is None:
            waiting = self._running.get((tenant, key))
            if waiting is None:
                raise _no_invocation(key)
            return v1.Invocation(idempotency_key=key, tool_name=waiting.tool_name, status=v1.INVOCATION_STATUS_RUNNING)
        found = row.message()
        if full_output and row.output_id is not None:
            whole = await self._outputs.whole(row.output_id)
            if whole is None:
                raise NotFoundError(f"the whole output of {key!r} is not kept any more", field="full_output")
            if found.result.error_code:
                found.result.error_message = whole
            else:
                found.result.content.CopyFrom(content(whole))
        return found

    async def cancel(self, key: str) -> v1.Invocation:
        """Ask a call to stop; answers how it stands.

        Raises:
            NotFoundError: If there is none.
        """
        place = (current_tenant(), key)
        while True:
            running = self._running.get(place)
            if running is not None and not running.elsewhere:
                running.cancel()
                return await self.get(key)
            row = await self._ledger.request_cancel(*place)
            if row is not None:
                return row.message()
            if place not in self._running:  # else it was begun while we looked
                raise _no_invocation(key)

    async def heed_cancels(self) -> None:
        """Stop the calls of this process that other processes were asked to stop."""
        for place in await self._ledger.to_cancel():
            if place in self._running:
                self._running[place].cancel()

    async def stop(self) -> None:
        """The service ends: stop the tools that run; what came of them is not known."""
        running = [one for one in self._running.values() if one.task is not None]
        for one in running:
            if one.task is not None and not one.stopped:
                one.task.cancel()
        tasks = [one.task for one in running if one.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    def _joined(self, plan: Plan) -> Running | None:
        running = self._running.get((plan.tenant, plan.key))
        if running is not None:
            check_digest(running.digest, plan)
        return running

    async def _replayed(self, plan: Plan) -> Running | None:
        """The result that is stored under the key; None when the call is to run."""
        if not plan.request.idempotency_key:
            return None
        row = await self._ledger.get(plan.tenant, plan.key)
        answered = plan.request.HasField("input_response")
        if row is None:
            if answered:
                message = f"no call with the key {plan.key!r} asked for input; leave input_response out"
                raise InvalidArgumentError(message, field="input_response")
            return None
        check_digest(row.digest, plan)
        if may_run(row, answered=answered):
            _check_answer(row, plan)
            return None
        if row.status == v1.INVOCATION_STATUS_RUNNING and row.owner != self._ledger.owner:
            return None  # another process runs it; the execution waits for that
        await self._record(plan, outcome="replayed")
        return _ended(row.answer(), key=plan.key, tool_name=plan.tool_name)

    async def _run(self, plan: Plan, running: Running, work: Coroutine[Any, Any, v1.ToolInvocationResult]) -> None:
        """The top of a call: what happens in it reaches those who wait, and ends no other call."""
        running.begin()
        try:
            running.finish(await work)
        except StackError as error:
            running.fail(error)
        except asyncio.CancelledError:
            message = "the service ends; ask for the call by its key, or call again elsewhere"
            running.fail(UnavailableError(message, reason="DRAINING"))
            raise
        finally:
            self._running.pop((plan.tenant, plan.key), None)

    async def _record(self, plan: Plan, *, outcome: str, code: int = 0) -> None:
        self._metrics.ended(plan.found.group.provider_id, outcome=outcome)
        await self._audit.note(entry(plan, outcome=outcome, code=code))

    async def _note(self, request: v1.InvokeToolRequest, *, outcome: str, code: int = 0) -> None:
        """Record a call of which not even the tool is known."""
        call = current_call()
        self._metrics.ended("", outcome=outcome)
        note = Entry(
            tool_name=request.tool_name[:512],
            outcome=outcome,
            tenant=current_tenant(),
            request_id=call.request_id if call else "",
            session_id=request.session_id,
            call_id=request.call_id,
            key=request.idempotency_key,
            error_code=code,
        )
        await self._audit.note(note)


def _no_invocation(key: str) -> NotFoundError:
    return NotFoundError(f"no invocation {key[:256]!r} within the last 24 hours", field="idempotency_key")


def _check_answer(row: Row, plan: Plan) -> None:
    """Refuse an answer to another question.

    Raises:
        InvalidArgumentError: If the state is not that of the question.
    """
    if row.asked and row.result is not None and plan.request.input_response.state != row.result.input_required.state:
        message = "input_response.state is not that of the call's input_required; send it back unchanged"
        raise InvalidArgumentError(message, field="input_response.state")


def _ended(result: v1.ToolInvocationResult, *, key: str, tool_name: str) -> Running:
    """A call that has its result already."""
    running = Running(key=key, tool_name=tool_name, digest="", keyed=True)
    running.finish(result)
    return running
