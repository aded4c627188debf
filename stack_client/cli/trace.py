"""A turn as lines for people: what was asked, each step with how long it took, and how it ended."""

from collections.abc import Iterator

from google.protobuf.timestamp_pb2 import Timestamp

from llamastack import v1
from stack_client.content import text_of
from stack_client.printing import describe
from stack_client.results import Pending

SHORT = 160
"""Characters of a text that are shown."""
_STATES = {
    v1.TOOL_CALL_STATE_DONE: "ok",
    v1.TOOL_CALL_STATE_FAILED: "failed",
    v1.TOOL_CALL_STATE_UNKNOWN: "fate unknown",
}


def trace(turn: v1.Turn) -> Iterator[str]:
    """The lines of a turn."""
    status = v1.TurnStatus.Name(turn.status).removeprefix("TURN_STATUS_").lower()
    took = _seconds(turn.started_at, turn.completed_at if turn.HasField("completed_at") else None)
    yield f"turn {turn.turn_id}  {status}{took}  {turn.usage.total_tokens} tokens"
    if turn.waited_seconds:
        yield f"  (of which {turn.waited_seconds:.1f} s waiting for people and client tools)"
    for message in turn.input_messages:
        said = message.user.content if message.HasField("user") else message.tool.content
        yield f"  user: {_short(text_of(said))}"
    for step in turn.steps:
        yield from _step(turn, step)
    for one in turn.pending:
        yield f"  {describe(Pending.of(one))}"
    if turn.HasField("error"):
        yield f"  error: {turn.error.message}"
    elif turn.HasField("output_message") and not turn.pending:
        yield f"  answer: {_short(text_of(turn.output_message.content))}"


def _step(turn: v1.Turn, step: v1.Step) -> Iterator[str]:
    kind = v1.StepType.Name(step.step_type).removeprefix("STEP_TYPE_").lower()
    begun = (step.started_at.ToNanoseconds() - turn.started_at.ToNanoseconds()) / 1e9
    took = _seconds(step.started_at, step.completed_at if step.HasField("completed_at") else None)
    yield f"  {begun:7.3f} s  {kind}{took}{_facts(step)}"
    if step.HasField("tool_execution"):
        yield from _calls(step.tool_execution)


def _facts(step: v1.Step) -> str:
    match step.WhichOneof("details"):
        case "inference":
            usage = step.inference.usage
            return f"  {usage.prompt_tokens} in ({usage.cached_tokens} cached), {usage.completion_tokens} out"
        case "memory_retrieval":
            return f"  {step.memory_retrieval.vector_db_ids}"
        case "shield_call":
            return f"  {_violation(step.shield_call)}"
        case "compaction":
            return f"  {_short(step.compaction.summary)}"
        case "approval":
            return f"  {', '.join(map(_decision, step.approval.decisions)) or 'nothing decided yet'}"
        case _:
            return ""


def _violation(step: v1.ShieldCallStep) -> str:
    if not step.HasField("violation"):
        return "nothing found"
    facts = dict(step.violation.metadata.items())
    return f"{step.violation.violation_level}: {facts.get('violation_type', '')}"


def _decision(made: v1.ToolDecision) -> str:
    return f"{v1.ToolDecisionKind.Name(made.kind).removeprefix('TOOL_DECISION_KIND_').lower()} {made.call_id}"


def _calls(step: v1.ToolExecutionStep) -> Iterator[str]:
    records = {record.call_id: record for record in step.records}
    answers = {response.call_id: text_of(response.content) for response in step.tool_responses}
    for call in step.tool_calls:
        record = records.get(call.call_id, v1.ToolCallRecord())
        took = _seconds(record.started_at, record.completed_at) if record.HasField("started_at") else ""
        waits = v1.ToolCallState.Name(record.state).removeprefix("TOOL_CALL_STATE_").lower().replace("_", " ")
        state = _STATES.get(record.state, waits)
        more = f", {record.attempts} attempts" if record.attempts > 1 else ""
        arguments = record.edited_arguments_json or call.arguments_json
        yield f"             {record.tool or call.tool_name}({_short(arguments)})  {state}{took}{more}"
        if call.call_id in answers:
            yield f"             -> {_short(answers[call.call_id])}"


def _seconds(begin: Timestamp, end: Timestamp | None) -> str:
    return "" if end is None else f"  {(end.ToNanoseconds() - begin.ToNanoseconds()) / 1e9:.3f} s"


def _short(text: str) -> str:
    line = " ".join(text.replace("\x1b", "\\e").split())
    return line if len(line) <= SHORT else f"{line[:SHORT]}..."
