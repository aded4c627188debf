"""The ledger of a turn's tool calls: what each one waits for, and what became of it.

A call that the model wrote has a line in its step from the moment that the step is stored. Callers name a line and say
what they decide or bring; they cannot add one, so nobody can make the stack run a call that no model asked for.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from llamastack import v1
from services.agents.approvals import needs_approval
from services.agents.offered import Offered
from services.agents.turn_log import now
from stack_client.content import content, struct

PENDING = {
    v1.TOOL_CALL_STATE_AWAITING_CLIENT: v1.PENDING_KIND_CLIENT_TOOL,
    v1.TOOL_CALL_STATE_AWAITING_APPROVAL: v1.PENDING_KIND_APPROVAL,
    v1.TOOL_CALL_STATE_AWAITING_INPUT: v1.PENDING_KIND_INPUT,
    v1.TOOL_CALL_STATE_UNKNOWN: v1.PENDING_KIND_LOST,
}
RUNNABLE = {v1.TOOL_CALL_STATE_REQUESTED, v1.TOOL_CALL_STATE_APPROVED, v1.TOOL_CALL_STATE_STARTED}
_SERVED = {"server", "agent"}
ENDED = {v1.TOOL_CALL_STATE_DONE, v1.TOOL_CALL_STATE_FAILED}


def open_step(turn: v1.Turn) -> v1.Step | None:
    """The tool step of a turn that is not complete; None where there is none."""
    for step in reversed(turn.steps):
        if step.WhichOneof("details") == "tool_execution":
            return None if step.HasField("completed_at") else step
    return None


def begin(step: v1.Step, *, place: int, tools: Mapping[str, Offered], config: v1.AgentConfig, served: int = 0) -> None:
    """Write the lines of a new step: what is unknown fails, what needs a person waits, the rest may run.

    Args:
        step: New, with its calls.
        place: Of the step in its turn.
        tools: Of the turn.
        config: Of the agent.
        served: Calls that the turn's steps before made of tools that the stack runs.
    """
    for index, call in enumerate(step.tool_execution.tool_calls):
        tool = tools.get(call.tool_name)
        record = step.tool_execution.records.add(call_id=call.call_id, state=v1.TOOL_CALL_STATE_REQUESTED)
        if tool is None:
            names = ", ".join(sorted(tools)) or "none"
            fail(step, call, f"There is no tool {call.tool_name!r}; the tools are: {names}.")
            continue
        record.tool, record.effect = tool.tool, tool.effect
        record.idempotency_key = _key(step, place, index, call, tool)
        served += tool.kind in _SERVED
        if tool.kind in _SERVED and config.HasField("max_tool_calls") and served > config.max_tool_calls:
            text = (
                f"The call was not made: no more than {config.max_tool_calls} calls may be. Answer with what you have."
            )
            fail(step, call, text, reason="LIMIT")
            continue
        needed, expires = needs_approval(call, tool, config)
        if needed:
            record.state = v1.TOOL_CALL_STATE_AWAITING_APPROVAL
            if expires is not None:
                record.expires_at.FromMilliseconds(now().ToMilliseconds() + int(expires * 1000))
        elif tool.kind == "client":
            record.state = v1.TOOL_CALL_STATE_AWAITING_CLIENT


def served(steps: Iterable[v1.Step], tools: Mapping[str, Offered]) -> int:
    """Calls of tools that the stack runs."""
    calls = (call for step in steps for call in step.tool_execution.tool_calls)
    return sum(call.tool_name in tools and tools[call.tool_name].kind in _SERVED for call in calls)


def _key(step: v1.Step, place: int, index: int, call: v1.ToolCall, tool: Offered) -> str:
    """Names a call over all attempts: where it stands in its turn, its tool, its arguments."""
    arguments = call.arguments_json.encode() or call.arguments.SerializeToString(deterministic=True)
    facts = [step.turn_id, str(place), str(index), tool.tool]
    return hashlib.sha256("\0".join(facts).encode() + b"\0" + arguments).hexdigest()


def record_of(step: v1.Step, call_id: str) -> v1.ToolCallRecord:
    """The line of a call of the step; lines of steps that older versions stored are made up for."""
    execution = step.tool_execution
    for record in execution.records:
        if record.call_id == call_id:
            return record
    answered = any(response.call_id == call_id for response in execution.tool_responses)
    state = v1.TOOL_CALL_STATE_DONE if answered else v1.TOOL_CALL_STATE_AWAITING_CLIENT
    return execution.records.add(call_id=call_id, state=state)


def lines(step: v1.Step) -> Iterator[tuple[v1.ToolCall, v1.ToolCallRecord]]:
    """The calls of a step with their lines, in the model's order."""
    for call in step.tool_execution.tool_calls:
        yield call, record_of(step, call.call_id)


def runnable(step: v1.Step) -> list[tuple[v1.ToolCall, v1.ToolCallRecord]]:
    """The calls that the service can go on with by itself."""
    return [(call, record) for call, record in lines(step) if record.state in RUNNABLE]


def pending(step: v1.Step) -> list[v1.PendingCall]:
    """What a step waits for, in the model's order."""
    found = []
    for call, record in lines(step):
        kind = PENDING.get(record.state)
        if kind is None:
            continue
        waiting = v1.PendingCall(call=call, kind=kind, tool=record.tool or call.tool_name, effect=record.effect)
        if record.edited_arguments_json:
            waiting.call.arguments_json = record.edited_arguments_json
        if kind == v1.PENDING_KIND_INPUT:
            waiting.input.CopyFrom(record.input)
        if record.HasField("expires_at") and kind == v1.PENDING_KIND_APPROVAL:
            waiting.expires_at.CopyFrom(record.expires_at)
        found.append(waiting)
    return found


def answer(step: v1.Step, call: v1.ToolCall, response: v1.ToolResponse, *, failed: bool = False) -> None:
    """Write a call's result, which ends it."""
    record = record_of(step, call.call_id)
    record.state = v1.TOOL_CALL_STATE_FAILED if failed else v1.TOOL_CALL_STATE_DONE
    record.completed_at.CopyFrom(now())
    stored = step.tool_execution.tool_responses.add()
    stored.CopyFrom(response)
    stored.call_id, stored.tool_name = call.call_id, call.tool_name


def fail(step: v1.Step, call: v1.ToolCall, text: str, *, reason: str = "") -> None:
    """End a call with words that the model can use."""
    facts = {"error": True, **({"reason": reason} if reason else {})}
    answer(step, call, v1.ToolResponse(content=content(text), metadata=struct(facts)), failed=True)


def expire(step: v1.Step, moment: Timestamp) -> list[v1.ToolDecision]:
    """Deny the calls whose approval is overdue; returns what that decided."""
    decided = []
    for call, record in list(lines(step)):
        overdue = record.HasField("expires_at") and record.expires_at.ToNanoseconds() <= moment.ToNanoseconds()
        if record.state == v1.TOOL_CALL_STATE_AWAITING_APPROVAL and overdue:
            reason = "nobody decided in time"
            fail(step, call, f"The call was not allowed: {reason}.", reason="EXPIRED")
            decided.append(
                v1.ToolDecision(call_id=call.call_id, kind=v1.TOOL_DECISION_KIND_DENY, reason=reason, decided_at=moment)
            )
    return decided


def in_order(step: v1.Step) -> None:
    """Sort the results as the calls are."""
    order = {call.call_id: place for place, call in enumerate(step.tool_execution.tool_calls)}
    responses = sorted(step.tool_execution.tool_responses, key=lambda response: order[response.call_id])
    del step.tool_execution.tool_responses[:]
    step.tool_execution.tool_responses.extend(responses)


def arguments_json(call: v1.ToolCall, record: v1.ToolCallRecord) -> str:
    """The arguments that are used, as JSON text; empty where only the Struct of the call has them."""
    return record.edited_arguments_json or call.arguments_json


def nested_turns(step: v1.Step) -> list[str]:
    """The turns of other agents that answer calls of this step and may still run."""
    return [record.agent_turn_id for _, record in lines(step) if record.agent_turn_id and record.state not in ENDED]


def repeats(called: Sequence[v1.ToolExecutionStep], times: int) -> bool:
    """Whether the last tool steps made the very same calls, so often."""
    last = [
        [
            (call.tool_name, call.arguments_json, call.arguments.SerializeToString(deterministic=True))
            for call in step.tool_calls
        ]
        for step in called[-times:]
    ]
    return len(last) == times and all(calls == last[0] for calls in last)


def calls_message(waiting: Iterable[v1.PendingCall]) -> v1.CompletionMessage:
    """The message that shows a caller which of his tools are called."""
    calls = [one.call for one in waiting if one.kind == v1.PENDING_KIND_CLIENT_TOOL]
    return v1.CompletionMessage(stop_reason=v1.STOP_REASON_END_OF_MESSAGE, tool_calls=calls)
