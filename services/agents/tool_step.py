"""Running the calls of a tool step: intent before effect, side by side, results in the order of the calls.

What a process finds of a call that another one began depends on what the call changes. One that reads, or that acts
once however often it is asked, is sent again with the same key. One that must not be repeated is asked after by its
key: the tools service keeps what became of it. Where even that is not known, a person has to say.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from llamastack import v1
from services.agents import ledger
from services.agents.config import AgentsConfig
from services.agents.offered import Offered
from services.agents.toolbox import Toolbox
from services.agents.turn_log import TurnLog, now
from stack_client.content import content, text_of
from stack_client.errors import (
    DeadlineExceededError,
    InternalError,
    ResourceExhaustedError,
    StackError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

AskAgent = Callable[[v1.ToolCall, v1.ToolCallRecord, Offered], Awaitable[v1.ToolInvocationResult | None]]
"""Lets another agent answer; None while that agent waits for its caller."""


class ToolStep:
    """Runs what can be run of one step.

    Args:
        log: Of the turn.
        step: A copy of the step; changed here and put into the log.
        tools: Of the turn, by the name that the model calls.
        toolbox: The tools service.
        ask_agent: Lets another agent answer a call.
        limits: Of the service.
        parallel: Calls at a time.
    """

    def __init__(
        self,
        log: TurnLog,
        step: v1.Step,
        *,
        tools: Mapping[str, Offered],
        toolbox: Toolbox,
        ask_agent: AskAgent,
        limits: AgentsConfig,
        parallel: int,
    ) -> None:
        self._log = log
        self.step = step
        self._tools = tools
        self._toolbox = toolbox
        self._ask_agent = ask_agent
        self._limits = limits
        self._slots = asyncio.Semaphore(parallel)
        self._left = 0

    async def run(self) -> None:
        """Run all calls that can run; each ends with a result or waits for somebody, one failure ends no other.

        Raises:
            StackError: If a call cannot be made at all, for example because the tools service stays away.
        """
        calls = ledger.runnable(self.step)
        self._left = len(calls)
        try:
            async with asyncio.TaskGroup() as group:
                for call, record in calls:
                    group.create_task(self._run(call, record))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _run(self, call: v1.ToolCall, record: v1.ToolCallRecord) -> None:
        tool = self._tools.get(call.tool_name)
        assert tool is not None, "a line without a tool has failed when it was written"
        async with self._slots:
            known = await self._known(record, tool) if record.state == v1.TOOL_CALL_STATE_STARTED else None
            if record.state == v1.TOOL_CALL_STATE_UNKNOWN:
                result = None
            else:
                result = known if known is not None else await self._send(call, record, tool)
        if record.state == v1.TOOL_CALL_STATE_UNKNOWN:
            await self._wrote()
            return
        if result is None:
            record.state = v1.TOOL_CALL_STATE_AWAITING_INPUT
        elif result.HasField("input_required"):
            record.input.CopyFrom(result.input_required)
            record.state = v1.TOOL_CALL_STATE_AWAITING_INPUT
        else:
            self._finish(call, result)
        await self._wrote()

    async def _wrote(self) -> None:
        """Store what became of a call, unless it was the last one: its end is stored with that of the step."""
        self._left -= 1
        self._log.put_step(self.step)
        if self._left:
            await self._log.commit()

    async def _known(self, record: v1.ToolCallRecord, tool: Offered) -> v1.ToolInvocationResult | None:
        """The result of a call that was begun before; None where it is to be sent again, or is marked as unknown."""
        if tool.kind != "server" or record.effect != v1.TOOL_EFFECT_WRITE:
            return None
        invocation = await self._patiently(lambda: self._toolbox.invocation(record.idempotency_key))
        if invocation is None:
            return None  # it never arrived
        if invocation.status == v1.INVOCATION_STATUS_LOST:
            logger.warning("fate of a tool call unknown turn=%s call=%s", self._log.turn.turn_id, record.call_id)
            record.state = v1.TOOL_CALL_STATE_UNKNOWN
            return None
        return invocation.result if invocation.HasField("result") else None  # one that runs is joined by its key

    async def _send(
        self, call: v1.ToolCall, record: v1.ToolCallRecord, tool: Offered
    ) -> v1.ToolInvocationResult | None:
        if tool.kind == "handoff":
            return v1.ToolInvocationResult(content=content(f"The dialog is handed over to {tool.name}."))
        record.state = v1.TOOL_CALL_STATE_STARTED
        record.attempts += 1
        if not record.HasField("started_at"):
            record.started_at.CopyFrom(now())
        self._log.put_step(self.step)
        unsafe = record.effect == v1.TOOL_EFFECT_WRITE
        await self._log.commit(through_power_loss=unsafe and self._limits.durability == "power")
        if tool.kind == "agent":
            return await self._ask_agent(call, record, tool)
        try:
            return await self._invoke(call, record, tool)
        except DeadlineExceededError as error:
            message = f"{tool.tool} did not answer in time: {error.message}"
            raise DeadlineExceededError(message) from error
        except UnavailableError as error:
            await self._toolbox.invocation(record.idempotency_key)  # raises where the tools service itself is away
            return _failed(error)
        except StackError as error:  # this call's own failure, which ends no other
            return _failed(error)

    async def _invoke(
        self, call: v1.ToolCall, record: v1.ToolCallRecord, tool: Offered
    ) -> v1.ToolInvocationResult | None:
        """Send a call; when the tools service goes away meanwhile, ask it after the call once it is back."""
        request = v1.InvokeToolRequest(
            tool_name=tool.tool,
            kwargs=call.arguments,
            kwargs_json=ledger.arguments_json(call, record),
            idempotency_key=record.idempotency_key,
            call_id=call.call_id,
            session_id=self._log.turn.session_id,
            approved_by=record.approved_by,
            timeout_seconds=tool.definition.timeout_seconds if tool.definition.HasField("timeout_seconds") else None,
            input_response=record.input_response if record.HasField("input_response") else None,
            args=tool.args,
        )
        try:
            for failures in range(1, self._limits.inference_attempts + 1):
                try:
                    return await self._follow(call, tool, request)
                except (UnavailableError, ResourceExhaustedError) as error:
                    if failures == self._limits.inference_attempts:
                        raise
                    await asyncio.sleep(_pause(self._limits, failures, error))
                known = await self._known(record, tool)
                if known is not None or record.state == v1.TOOL_CALL_STATE_UNKNOWN:
                    return known
        except asyncio.CancelledError:
            await asyncio.shield(self._toolbox.cancel(record.idempotency_key))
            raise
        raise AssertionError("the last try returns or raises")

    async def _follow(self, call: v1.ToolCall, tool: Offered, request: v1.InvokeToolRequest) -> v1.ToolInvocationResult:
        async for event in self._toolbox.invoke(request):
            match event.WhichOneof("event"):
                case "progress":
                    progress = event.progress
                    fraction = progress.fraction if progress.HasField("fraction") else None
                    self.progress(call, tool, fraction=fraction, message=progress.message)
                case "output":
                    self.progress(call, tool, stream=event.output.stream, text=event.output.text)
                case "result":
                    return event.result
        raise InternalError(f"{tool.tool} ended without a result")

    def progress(self, call: v1.ToolCall, tool: Offered, **facts: object) -> None:
        """Show what a running tool reports."""
        told = v1.ToolCallProgress(call_id=call.call_id, tool=tool.tool, **facts)  # type: ignore[arg-type]
        step = self.step
        self._log.add(
            step_progress=v1.TurnStepProgress(step_type=step.step_type, step_id=step.step_id, tool_progress=told)
        )

    async def _patiently(self, ask: Callable[[], Awaitable[v1.Invocation | None]]) -> v1.Invocation | None:
        for failures in range(1, self._limits.inference_attempts + 1):
            try:
                return await ask()
            except UnavailableError as error:
                if failures == self._limits.inference_attempts:
                    raise
                await asyncio.sleep(_pause(self._limits, failures, error))
        raise AssertionError("the last try returns or raises")

    def _finish(self, call: v1.ToolCall, result: v1.ToolInvocationResult) -> None:
        """Write a result into the ledger as the model and the programs will read it."""
        failed = result.error_code != 0 or result.HasField("error_message")
        facts: dict[str, Any] = {}
        if failed:
            facts |= {"error": True, "error_code": result.error_code or 1}
        if result.HasField("full_output_file_id"):
            facts["full_output_file_id"] = result.full_output_file_id
        if result.schema_path:
            facts["schema_path"] = list(result.schema_path)
        response = v1.ToolResponse(content=result.content)
        if facts or result.HasField("metadata"):
            response.metadata.CopyFrom(result.metadata)
            response.metadata.update(facts)
        if failed and result.error_message not in text_of(result.content):
            response.content.items.add(text=result.error_message)
        ledger.answer(self.step, call, response, failed=failed)
        self._log.turn.output_attachments.extend(result.attachments)
        for item in result.content.items:
            if item.HasField("image"):
                shown = v1.ContentOrUrl(content=v1.InterleavedContent(items=[item]))
                self._log.turn.output_attachments.add(content=shown, mime_type=_media_type(item.image.data))


def _media_type(data: bytes) -> str:
    """Of an image file by its first bytes; empty where that does not tell."""
    heads = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
    return next((kind for head, kind in heads.items() if data.startswith(head)), "")


def _failed(error: StackError) -> v1.ToolInvocationResult:
    return v1.ToolInvocationResult(error_message=error.message, error_code=error.http_status)


def _pause(limits: AgentsConfig, failures: int, error: StackError) -> float:
    return max(error.retry_after or 0.0, limits.inference_retry_seconds * 2.0 ** (failures - 1))
