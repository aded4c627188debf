"""Taking the results of client tools into a turn that waits for them."""

from collections.abc import Sequence

from llamastack import v1
from services.agents.turn import calls_message, complete_tools, waiting_calls
from services.agents.turn_log import TurnLog
from stack_client.errors import FailedPreconditionError, NotFoundError


def take_results(log: TurnLog, responses: Sequence[v1.ToolResponse]) -> bool:
    """Add results to the turn of a log, which is not committed here; False where all of them are known already.

    Raises:
        NotFoundError: If there is no such call.
        FailedPreconditionError: If a call has another result already, or the turn does not wait.
    """
    turn = log.turn
    step = v1.Step()
    if turn.status == v1.TURN_STATUS_AWAITING_INPUT:
        step.CopyFrom(turn.steps[-1])
    waiting = {call.call_id: call for call in waiting_calls(step)}
    known = {result.call_id: result for earlier in turn.steps for result in earlier.tool_execution.tool_responses}
    taken = 0
    for response in responses:
        call = waiting.pop(response.call_id, None)
        if call is None:
            _check_repeat(turn, response, known, waiting)
            continue
        taken += 1
        known[response.call_id] = response
        step.tool_execution.tool_responses.append(response)
        step.tool_execution.tool_responses[-1].tool_name = call.tool_name
    if not taken:
        return False
    if waiting:
        turn.output_message.CopyFrom(calls_message(step))
    else:
        complete_tools(log, step)
        turn.status = v1.TURN_STATUS_RUNNING
        turn.ClearField("output_message")
    log.put_step(step)
    return True


def _check_repeat(
    turn: v1.Turn, response: v1.ToolResponse, known: dict[str, v1.ToolResponse], waiting: dict[str, v1.ToolCall]
) -> None:
    before = known.get(response.call_id)
    if before is not None:
        if before.content != response.content:
            message = f"call {response.call_id} of turn {turn.turn_id} was answered before with other content"
            raise FailedPreconditionError(message)
        return
    if turn.status != v1.TURN_STATUS_AWAITING_INPUT:
        status = v1.TurnStatus.Name(turn.status).removeprefix("TURN_STATUS_").lower()
        raise FailedPreconditionError(f"turn {turn.turn_id} does not wait for tool results; it is {status}")
    names = ", ".join(waiting) or "none"
    raise NotFoundError(f"turn {turn.turn_id} has no call {response.call_id!r}; it waits for: {names}")
