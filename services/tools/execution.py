"""Running one call: a place in its group, the intent, the tool within its time, and what comes of it."""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from llamastack import v1
from services.runtime.moments import now
from services.tools.audit import Entry
from services.tools.faults import FAULT, Fault, FaultError
from services.tools.ledger import Ledger, Row, effect_name
from services.tools.metrics import ToolMetrics
from services.tools.outputs import Outputs
from services.tools.planning import Plan
from services.tools.provider import Access, Call, ToolProvider
from services.tools.running import Running, RunningReport
from services.tools.secrets import Scrubber
from services.tools.slots import Slots
from stack_client.content import struct
from stack_client.errors import (
    AuthenticationError,
    InvalidArgumentError,
    ResourceExhaustedError,
    StackError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""Pause between two looks at a call that another process runs."""


class Execution:
    """Runs calls that were planned.

    Args:
        providers: By id.
        ledger: Stores them.
        outputs: Keeps long outputs.
        metrics: Counts them.
        slots: Places of groups.
        most: Bytes of a whole result.
    """

    def __init__(
        self,
        providers: Mapping[str, ToolProvider],
        *,
        ledger: Ledger,
        outputs: Outputs,
        metrics: ToolMetrics,
        slots: Slots,
        most: int,
    ) -> None:
        self._providers = providers
        self._ledger = ledger
        self._outputs = outputs
        self._metrics = metrics
        self._slots = slots
        self._most = most

    async def run(
        self, plan: Plan, running: Running, *, arguments: Mapping[str, Any], access: Access
    ) -> v1.ToolInvocationResult:
        """Run a call, or wait for the process that runs it already.

        Raises:
            StackError: If nothing happened: no place was free, the tool's server does not answer, the key is another's.
        """
        group = plan.found.group
        limit = group.settings.max_concurrency
        began = False
        try:
            place = self._slots.place(plan.found.owner or "", group.identifier, limit=limit, seconds=plan.timeout)
            async with place:
                row, mine = await self._ledger.begin(_draft(plan))
                if not mine:
                    return await self._other(plan, running, row)
                began = True
                return await self._attempt(plan, running, row, arguments=arguments, access=access)
        except ResourceExhaustedError:
            self._metrics.ended(group.provider_id, outcome="overloaded")
            raise
        except asyncio.CancelledError:
            if began or running.elsewhere or not running.cancel_requested:
                raise
            _uncancel()
            running.stopped = True
            fault = FaultError(Fault.CANCELLED, f"{plan.tool_name} was cancelled before it began.")
            result, draft = fault.result(), _draft(plan)
            self._metrics.ended(group.provider_id, outcome="cancelled")
            note = entry(plan, outcome="cancelled", code=int(fault.fault))
            await self._ledger.end(draft, v1.INVOCATION_STATUS_CANCELLED, result, entry=note)
            return result

    async def _attempt(
        self, plan: Plan, running: Running, row: Row, *, arguments: Mapping[str, Any], access: Access
    ) -> v1.ToolInvocationResult:
        report = RunningReport(running, access)
        running.put("started", v1.ToolStarted(idempotency_key=plan.key, tool_name=plan.tool_name))
        provider, started = plan.found.group.provider_id, time.monotonic()
        self._metrics.started(provider)
        try:
            call = _call(plan, row, arguments=arguments, access=access, report=report)
            result, outcome = await self._invoke(plan, running, call)
        except StackError as error:  # nothing happened
            running.stopped = True
            self._metrics.ended(provider, outcome="unavailable")
            await self._ledger.withdraw(row, entry=entry(plan, outcome="unavailable", code=error.http_status))
            raise _scrubbed(error, access) from None
        except asyncio.CancelledError:  # the service ends
            running.stopped = True
            await self._ledger.lose(row, entry=entry(plan, outcome="lost", code=int(Fault.LOST), attempt=row.attempt))
            raise
        finally:
            seconds = time.monotonic() - started
            self._metrics.stopped(provider, seconds=seconds)
        running.stopped = True
        report.flush()
        output_id = await self._tidy(result, plan, access)
        status = v1.INVOCATION_STATUS_FAILED if result.error_code else v1.INVOCATION_STATUS_COMPLETED
        if outcome == "cancelled":
            status = v1.INVOCATION_STATUS_CANCELLED
        self._metrics.ended(provider, outcome=outcome)
        note = entry(
            plan, outcome=outcome, code=result.error_code, attempt=row.attempt, milliseconds=round(seconds * 1000)
        )
        await self._ledger.end(row, status, result, entry=note, output_id=output_id)
        return result

    async def _invoke(self, plan: Plan, running: Running, call: Call) -> tuple[v1.ToolInvocationResult, str]:
        """Result and outcome.

        Raises:
            UnavailableError: If nothing happened, as the tool's server cannot be reached.
            AuthenticationError: If nothing happened, as it refuses the credential.
        """
        scope = asyncio.timeout(plan.timeout)
        try:
            async with scope:
                result = await self._providers[plan.found.group.provider_id].invoke(call)
            if result.HasField("input_required"):
                return result, "asked"
            return result, "failed" if result.error_code or result.error_message else "completed"
        except (UnavailableError, AuthenticationError):
            raise
        except StackError as error:
            return _refusal(error), "failed"
        except asyncio.CancelledError:
            if not running.cancel_requested:
                raise
            _uncancel()
            message = f"{plan.tool_name} was cancelled while it ran; what it did until then remains."
            return FaultError(Fault.CANCELLED, message).result(), "cancelled"
        except Exception as error:
            if isinstance(error, TimeoutError) and scope.expired():
                message = (
                    f"{plan.tool_name} was stopped after {plan.timeout:g} s, the time it had; what it did until then "
                    "remains. Ask for less, or allow more time."
                )
                return FaultError(Fault.TIMEOUT, message).result(), "timeout"
            logger.exception("tool provider failed", extra={"provider": plan.found.group.provider_id})
            message = f"{plan.tool_name} failed by a fault of the service, whose log has it; its effect is not known."
            return FaultError(Fault.INTERNAL, message).result(), "failed"

    async def _other(self, plan: Plan, running: Running, row: Row) -> v1.ToolInvocationResult:
        """The result of another call under the key, which may run in another process."""
        running.elsewhere = True
        found: Row | None = row
        while found is not None and found.status == v1.INVOCATION_STATUS_RUNNING:
            check_same(found, plan)
            await asyncio.sleep(LOOK_SECONDS)
            found = await self._ledger.get(plan.tenant, plan.key)
        if found is None:
            raise UnavailableError(f"the call {plan.key!r} did not run in the process that had it; call again")
        check_same(found, plan)
        return found.answer()

    async def _tidy(self, result: v1.ToolInvocationResult, plan: Plan, access: Access) -> str | None:
        """Make a result complete, free of secrets, and as long as it may be."""
        if result.error_message and not result.error_code:
            result.error_code = 1
        if result.error_code and not result.error_message:
            result.error_message = f"{plan.tool_name} failed with code {result.error_code}."
        Scrubber(access).message(result)
        output_id = await self._outputs.fit(result, tenant=plan.tenant, tool_name=plan.tool_name)
        if result.ByteSize() > self._most:
            size = result.ByteSize()
            message = (
                f"{plan.tool_name} answered {size} bytes of images and files, more than a message holds; ask for less."
            )
            result.CopyFrom(FaultError(Fault.INTERNAL, message).result())
        return output_id


def entry(plan: Plan, *, outcome: str, code: int = 0, attempt: int = 0, milliseconds: int = 0) -> Entry:
    """What is recorded of a call."""
    request = plan.request
    return Entry(
        tool_name=plan.tool_name,
        outcome=outcome,
        tenant=plan.tenant,
        request_id=plan.request_id,
        session_id=request.session_id,
        call_id=request.call_id,
        key=plan.key,
        digest=plan.digest,
        effect=effect_name(plan.tool.effect),
        attempt=attempt,
        approved_by=request.approved_by,
        error_code=code,
        milliseconds=milliseconds,
    )


def check_same(row: Row, plan: Plan) -> None:
    """Refuse a key that names another call.

    Raises:
        InvalidArgumentError: REQUEST_ID_REUSED.
    """
    check_digest(row.digest, plan)


def check_digest(digest: str, plan: Plan) -> None:
    """Refuse a key under which a call with another digest is known.

    Raises:
        InvalidArgumentError: REQUEST_ID_REUSED.
    """
    if digest != plan.digest:
        message = f"idempotency_key {plan.key!r} was used before with another tool or other arguments; choose a new one"
        raise InvalidArgumentError(message, reason="REQUEST_ID_REUSED", field="idempotency_key")


def _draft(plan: Plan) -> Row:
    return Row(
        tenant=plan.tenant,
        key=plan.key,
        tool_name=plan.tool_name,
        digest=plan.digest,
        effect=plan.tool.effect,
        status=v1.INVOCATION_STATUS_RUNNING,
        attempt=0,
        owner="",
        asked=plan.request.HasField("input_response"),
        cancel_requested=False,
        result=None,
        output_id=None,
        started_at=now(),
        completed_at=None,
    )


def _call(plan: Plan, row: Row, *, arguments: Mapping[str, Any], access: Access, report: RunningReport) -> Call:
    request = plan.request
    return Call(
        group=plan.found.group,
        tool=plan.tool,
        arguments=arguments,
        access=access,
        idempotency_key=row.key,
        call_id=request.call_id,
        session_id=request.session_id,
        timeout=plan.timeout,
        input_response=request.input_response if request.HasField("input_response") else None,
        report=report,
    )


def _refusal(error: StackError) -> v1.ToolInvocationResult:
    """An error of the mesh as a result: what the tool wanted cannot be."""
    return v1.ToolInvocationResult(
        error_code=error.http_status, error_message=error.message, metadata=struct({FAULT: error.reason.lower()})
    )


def _scrubbed(error: StackError, access: Access) -> StackError:
    clean = Scrubber(access)
    error.message = clean.text(error.message)
    error.metadata = {key: clean.text(value) for key, value in error.metadata.items()}
    return error


def _uncancel() -> None:
    """The cancellation was ours: the task goes on to say so."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
