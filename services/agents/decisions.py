"""Taking what a turn waits for: results of client tools, and what people decided."""

import json
from collections.abc import Collection, Sequence

from llamastack import v1
from services.agents import ledger
from services.agents.turn_log import TurnLog, new_step, now
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

_KINDS = {
    v1.TOOL_CALL_STATE_AWAITING_APPROVAL: (v1.TOOL_DECISION_KIND_APPROVE, v1.TOOL_DECISION_KIND_DENY),
    v1.TOOL_CALL_STATE_UNKNOWN: (v1.TOOL_DECISION_KIND_APPROVE, v1.TOOL_DECISION_KIND_DENY),
    v1.TOOL_CALL_STATE_AWAITING_INPUT: (v1.TOOL_DECISION_KIND_ANSWER, v1.TOOL_DECISION_KIND_DENY),
}
_ACTIONS = ("accept", "decline", "cancel")
_WAITING = (v1.TURN_STATUS_AWAITING_INPUT, v1.TURN_STATUS_NEEDS_ATTENTION)


def take(
    log: TurnLog,
    responses: Sequence[v1.ToolResponse],
    decisions: Sequence[v1.ToolDecision],
    *,
    woken: Collection[str] = (),
) -> bool:
    """Add what came to the turn of a log, which is not committed here; False where all of it is known already.

    The turn runs on when it can; else it waits for what is left.

    Args:
        log: Of the turn.
        responses: Results of client tools.
        decisions: What people decided.
        woken: Turns of other agents that answer calls of this one and may run again.

    Raises:
        NotFoundError: If there is no such call.
        FailedPreconditionError: If a call has another result or decision already, or the turn does not wait.
        InvalidArgumentError: If a decision does not fit what its call waits for.
    """
    turn = log.turn
    open_step = ledger.open_step(turn) if turn.status in _WAITING else None
    step = v1.Step()
    if open_step is not None:
        step.CopyFrom(open_step)
    taken = [_take_result(turn, step, response) for response in responses]
    decided = [one for one in decisions if _take_decision(turn, step, one)]
    wakened = [record for _, record in ledger.lines(step) if record.agent_turn_id and record.agent_turn_id in woken]
    for record in wakened:
        record.state = v1.TOOL_CALL_STATE_STARTED
    if not any(taken) and not decided and not wakened:
        return False
    log.put_step(step)
    record_decisions(log, step, decided)
    waiting = _still_waiting(turn, step)
    if waiting and not ledger.runnable(step):
        known = {(one.call.call_id, one.kind) for one in turn.pending}
        changed = any((one.call.call_id, one.kind) not in known for one in waiting)
        del turn.pending[:]
        turn.pending.extend(waiting)
        turn.output_message.CopyFrom(ledger.calls_message(waiting))
        if changed:  # an allowed call now waits for the caller to run it: those who watch must learn of it
            log.add(turn_awaiting_input=v1.TurnAwaitingInput(turn=turn))
    else:
        resume(turn)
    return True


def _still_waiting(turn: v1.Turn, step: v1.Step) -> list[v1.PendingCall]:
    """What a step waits for; what other agents wait for is as it was."""
    own = {call.call_id for call in step.tool_execution.tool_calls}
    of_agents = [one for one in turn.pending if one.call.call_id not in own]
    waiting = [one for one in ledger.pending(step) if not ledger.record_of(step, one.call.call_id).agent_turn_id]
    found = []
    for one in [*waiting, *of_agents]:
        found.append(v1.PendingCall())
        found[-1].CopyFrom(one)
    return found


def resume(turn: v1.Turn) -> None:
    """Let a turn that waited run on."""
    turn.status = v1.TURN_STATUS_RUNNING
    if turn.HasField("awaiting_since"):
        turn.waited_seconds += max(0.0, (now().ToMilliseconds() - turn.awaiting_since.ToMilliseconds()) / 1000)
    turn.ClearField("output_message")
    turn.ClearField("pending")
    turn.ClearField("awaiting_since")


def _take_result(turn: v1.Turn, step: v1.Step, response: v1.ToolResponse) -> bool:
    call = _call_of(step, response.call_id)
    record = ledger.record_of(step, call.call_id) if call else None
    if (
        call is not None
        and record is not None
        and record.state
        in {
            v1.TOOL_CALL_STATE_AWAITING_CLIENT,
            v1.TOOL_CALL_STATE_UNKNOWN,
        }
    ):
        ledger.answer(step, call, response, failed=bool(dict(response.metadata).get("error")))
        return True
    before = _result_of([*turn.steps, step], response.call_id)
    if before is not None:
        if before.content != response.content:
            message = f"call {response.call_id} of turn {turn.turn_id} was answered before with other content"
            raise FailedPreconditionError(message)
        return False
    raise _not_waiting(turn, step, response.call_id, "tool results")


def _take_decision(turn: v1.Turn, step: v1.Step, decision: v1.ToolDecision) -> bool:
    call = _call_of(step, decision.call_id)
    if call is None or not _decide(step, call, decision):
        if _repeats(turn, decision):
            return False
        if call is not None:
            _refuse_kind(ledger.record_of(step, call.call_id), decision)
        raise _not_waiting(turn, step, decision.call_id, "decisions")
    return True


def _decide(step: v1.Step, call: v1.ToolCall, decision: v1.ToolDecision) -> bool:
    record = ledger.record_of(step, call.call_id)
    if decision.kind not in _KINDS.get(record.state, ()):
        return False
    field = f"decisions[{call.call_id}]"
    if decision.kind == v1.TOOL_DECISION_KIND_DENY:
        why = f": {decision.reason}" if decision.reason else ""
        ledger.fail(step, call, f"A person did not allow this call{why}.", reason="DENIED")
        return True
    if decision.kind == v1.TOOL_DECISION_KIND_ANSWER:
        if decision.input.action not in _ACTIONS:
            message = f"{field}.input.action is {decision.input.action!r}; say {', '.join(_ACTIONS)}"
            raise InvalidArgumentError(message, field=f"{field}.input.action")
        record.input_response.CopyFrom(decision.input)
        record.input_response.state = record.input.state
        record.ClearField("input")
        record.state = v1.TOOL_CALL_STATE_APPROVED
        return True
    if decision.arguments_json:
        record.edited_arguments_json = _object(decision.arguments_json, field=f"{field}.arguments_json")
    if record.state == v1.TOOL_CALL_STATE_UNKNOWN:
        # What became of the attempt before is stored under its key; this one is another.
        record.idempotency_key = f"{record.idempotency_key.partition('/')[0]}/{record.attempts + 1}"
    record.approved_by = decision.decided_by or "a person"
    record.ClearField("expires_at")
    client = "/" not in record.tool
    record.state = v1.TOOL_CALL_STATE_AWAITING_CLIENT if client else v1.TOOL_CALL_STATE_APPROVED
    return True


def begin_approval(log: TurnLog, tool_step: v1.Step) -> None:
    """Begin the step that shows which calls people must decide about, where there are any."""
    waiting = [one.call for one in ledger.pending(tool_step) if one.kind == v1.PENDING_KIND_APPROVAL]
    if not waiting:
        return
    step = new_step(log.turn, v1.STEP_TYPE_APPROVAL, approval=v1.ApprovalStep(tool_calls=waiting))
    log.put_step(step)
    log.add(step_start=v1.TurnStepStart(step_type=step.step_type, step_id=step.step_id))


def record_decisions(log: TurnLog, tool_step: v1.Step, decided: Sequence[v1.ToolDecision]) -> None:
    """Add decisions to the approval step of a tool step; it is complete when none of its calls waits any more."""
    if not decided:
        return
    step = _approval_step(log, tool_step)
    for decision in decided:
        added = step.approval.decisions.add()
        added.CopyFrom(decision)
        added.decided_at.CopyFrom(decision.decided_at if decision.HasField("decided_at") else now())
    waiting = {one.call.call_id for one in ledger.pending(tool_step) if one.kind == v1.PENDING_KIND_APPROVAL}
    if not step.HasField("completed_at") and not waiting.intersection(c.call_id for c in step.approval.tool_calls):
        step.completed_at.CopyFrom(now())
        complete = v1.TurnStepComplete(step_type=step.step_type, step_id=step.step_id, step_details=step)
        log.put_step(step)
        log.add(step_complete=complete)
        return
    log.put_step(step)


def _approval_step(log: TurnLog, tool_step: v1.Step) -> v1.Step:
    """A copy of the approval step that belongs to a tool step; a new one where people were asked later."""
    for step in reversed(log.turn.steps):
        if step.WhichOneof("details") == "approval":
            found = v1.Step()
            found.CopyFrom(step)
            return found
        if step.step_id == tool_step.step_id:
            break
    made = new_step(log.turn, v1.STEP_TYPE_APPROVAL, approval=v1.ApprovalStep())
    log.put_step(made)
    log.add(step_start=v1.TurnStepStart(step_type=made.step_type, step_id=made.step_id))
    return made


def _repeats(turn: v1.Turn, decision: v1.ToolDecision) -> bool:
    """Whether a decision was taken before as it is; one that differs is refused."""
    for step in turn.steps:
        for known in step.approval.decisions:
            if known.call_id != decision.call_id or known.kind != decision.kind:
                continue
            if known.arguments_json == decision.arguments_json and known.input.content == decision.input.content:
                return True
    return False


def _refuse_kind(record: v1.ToolCallRecord, decision: v1.ToolDecision) -> None:
    fitting = _KINDS.get(record.state)
    if fitting is not None:
        names = " or ".join(v1.ToolDecisionKind.Name(kind).removeprefix("TOOL_DECISION_KIND_") for kind in fitting)
        message = f"call {decision.call_id} waits for a decision of another kind: {names}"
        raise InvalidArgumentError(message, field="decisions.kind")


def _object(text: str, *, field: str) -> str:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(f"{field} is no JSON: {error}", field=field) from error
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"{field} is no JSON object", field=field)
    return text


def _call_of(step: v1.Step, call_id: str) -> v1.ToolCall | None:
    return next((call for call in step.tool_execution.tool_calls if call.call_id == call_id), None)


def _result_of(steps: Sequence[v1.Step], call_id: str) -> v1.ToolResponse | None:
    results = (result for step in reversed(steps) for result in step.tool_execution.tool_responses)
    return next((result for result in results if result.call_id == call_id), None)


def _not_waiting(turn: v1.Turn, step: v1.Step, call_id: str, what: str) -> Exception:
    known = any(call.call_id == call_id for one in turn.steps for call in one.tool_execution.tool_calls)
    if turn.status not in _WAITING:
        status = v1.TurnStatus.Name(turn.status).removeprefix("TURN_STATUS_").lower()
        return FailedPreconditionError(f"turn {turn.turn_id} does not wait for {what}; it is {status}")
    if known:
        return FailedPreconditionError(f"call {call_id} of turn {turn.turn_id} does not wait for {what} any more")
    names = ", ".join(one.call.call_id for one in ledger.pending(step)) or "none"
    return NotFoundError(f"turn {turn.turn_id} has no call {call_id!r}; it waits for: {names}")
