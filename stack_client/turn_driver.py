"""Following a turn to its end: functions are run, functions decide about calls, streams attach again."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from llamastack import v1
from stack_client import content
from stack_client.agent_tools import ApprovalPolicy
from stack_client.client import StackClient
from stack_client.errors import CancelledError, FailedPreconditionError, from_error_message
from stack_client.results import AgentEvent, AgentResult, Pending
from stack_client.tools import FunctionTool

_ENDS = {"turn_complete", "turn_failed", "turn_cancelled"}


class TurnDriver:
    """Follows turns for one caller.

    Args:
        client: Of the stack.
        tools: The functions that this program runs, by name.
        approvals: What decides about calls in a person's place.
        output_type: What results read their answers as.
    """

    def __init__(
        self,
        client: StackClient,
        *,
        tools: Mapping[str, FunctionTool],
        approvals: ApprovalPolicy,
        output_type: Any = None,  # noqa: ANN401 (any type)
    ) -> None:
        self._client = client
        self._tools = tools
        self._approvals = approvals
        self._output_type = output_type

    async def events(self, turn_id: str, *, after: int, again: bool = False) -> AsyncGenerator[AgentEvent, None]:
        """The events of a turn behind a sequence, until it has ended or waits for a person.

        Args:
            turn_id: The turn.
            after: Sequence of the last event that was seen; 0 means none.
            again: Whether waits that are over are passed by: the turn is looked at from its beginning.

        Raises:
            StackError: As the turn failed.
            CancelledError: If it was cancelled.
        """
        sequence = after
        while True:
            waiting: v1.Turn | None = None
            async with self._client.agents.follow_turn(turn_id, after_sequence=sequence) as events:
                async for raw in events:
                    sequence = raw.sequence
                    if raw.WhichOneof("event") == "turn_awaiting_input":
                        waiting = raw.turn_awaiting_input.turn
                    for event in self._translate(raw):
                        yield event
                    if raw.WhichOneof("event") in _ENDS:
                        return
            assert waiting is not None, "a stream ends with its turn, or where that waits"
            if again:
                now = await self._client.agents.get_turn(turn_id)
                if now.last_sequence > sequence:
                    continue  # it went on long ago
                waiting = now
            responses = await self._respond(waiting)
            decisions = await self._decide(waiting)
            for response in responses:
                yield AgentEvent(tool_response=response)
            known = {(one.call.call_id, one.kind) for one in waiting.pending}
            if responses or decisions:
                waiting = await self._client.agents.resume_turn(turn_id, responses, decisions=decisions)
            news = any((one.call.call_id, one.kind) not in known for one in waiting.pending)
            if waiting.pending and not news:
                left = [Pending.of(one) for one in waiting.pending]
                yield AgentEvent(pending=left, result=self._result(waiting, ""))
                return

    def _result(self, turn: v1.Turn, text: str) -> AgentResult:
        return AgentResult(text=text, turn=turn, session_id=turn.session_id, output_type=self._output_type)

    async def _decide(self, turn: v1.Turn) -> list[v1.ToolDecision]:
        waiting = [Pending.of(one) for one in turn.pending if one.kind == v1.PENDING_KIND_APPROVAL]
        return [made for one in waiting if (made := await self._approvals.decide(one)) is not None]

    async def _respond(self, turn: v1.Turn) -> list[v1.ToolResponse]:
        """Run the calls that wait for this program, side by side; answers in the order of the calls."""
        calls: Sequence[v1.ToolCall] = turn.output_message.tool_calls
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._respond_to(call)) for call in calls]
        return [task.result() for task in tasks]

    async def _respond_to(self, call: v1.ToolCall) -> v1.ToolResponse:
        tool = self._tools.get(call.tool_name)
        if tool is None:
            known = ", ".join(self._tools) or "none"
            message = (
                f"the turn waits for {call.tool_name!r}, which this program does not have (it has: {known}); "
                "go on from a program that has it"
            )
            raise FailedPreconditionError(message)
        return await tool.respond(call, run=asyncio.to_thread)

    def _translate(self, raw: v1.WatchTurnResponse) -> list[AgentEvent]:
        """The events of ours that a service's event means; most mean none."""
        match raw.WhichOneof("event"):
            case "step_progress" if raw.step_progress.delta.WhichOneof("delta") == "text":
                return [AgentEvent(text=raw.step_progress.delta.text, raw=raw)]
            case "step_progress" if raw.step_progress.HasField("tool_progress"):
                return [AgentEvent(tool_progress=raw.step_progress.tool_progress, raw=raw)]
            case "step_restarted":
                return [AgentEvent(restarted=True, raw=raw)]
            case "step_complete":
                return self._of_step(raw, raw.step_complete.step_details)
            case "turn_complete":
                turn = raw.turn_complete.turn
                text = content.text_of(turn.output_message.content)
                return [AgentEvent(result=self._result(turn, text), raw=raw)]
            case "turn_failed":
                raise from_error_message(raw.turn_failed.turn.error)
            case "turn_cancelled":
                raise CancelledError(f"turn {raw.turn_cancelled.turn.turn_id} was cancelled")
            case _:
                return []

    def _of_step(self, raw: v1.WatchTurnResponse, step: v1.Step) -> list[AgentEvent]:
        match step.WhichOneof("details"):
            case "inference":
                return [AgentEvent(tool_call=call, raw=raw) for call in step.inference.model_response.tool_calls]
            case "shield_call" if step.shield_call.HasField("violation"):
                return [AgentEvent(violation=step.shield_call.violation, raw=raw)]
            case "memory_retrieval":
                return [AgentEvent(retrieval=step.memory_retrieval, raw=raw)]
            case "compaction":
                return [AgentEvent(compaction=step.compaction, raw=raw)]
            case "tool_execution":
                # Results of functions of this program are shown when they are there, before the step is complete.
                client = {record.call_id for record in step.tool_execution.records if "/" not in record.tool}
                return [
                    AgentEvent(tool_response=response, raw=raw)
                    for response in step.tool_execution.tool_responses
                    if response.call_id not in client
                ]
            case _:
                return []
