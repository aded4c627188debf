"""Events of responses, made of events of turns that are hard to bring about."""

from typing import Any

from google.protobuf.struct_pb2 import Struct

from llamastack import v1
from services.agents.responses.fold import Fold
from services.agents.responses.setup import Setup
from stack_client.content import content
from stack_client.responses import output_text
from tests.agents.test_responses import check_stream, kinds

INFERENCE = v1.STEP_TYPE_INFERENCE


def progress(text: str, *tokens: str) -> v1.WatchTurnResponse:
    made = v1.TurnStepProgress(step_type=INFERENCE, step_id="s", delta=v1.ContentDelta(text=text))
    for token in tokens:
        made.logprobs.add(chosen=v1.TokenLogProb(token=token, bytes=token.encode(), logprob=-0.5))
    return v1.WatchTurnResponse(step_progress=made)


def restarted() -> v1.WatchTurnResponse:
    return v1.WatchTurnResponse(step_restarted=v1.TurnStepRestarted(step_type=INFERENCE, step_id="s", attempt=2))


def said(text: str) -> v1.WatchTurnResponse:
    message = v1.CompletionMessage(content=content(text), stop_reason=v1.STOP_REASON_END_OF_TURN)
    step = v1.Step(step_id="s", step_type=INFERENCE, inference=v1.InferenceStep(model_response=message))
    return v1.WatchTurnResponse(step_complete=v1.TurnStepComplete(step_type=INFERENCE, step_details=step))


def complete(text: str, *steps: v1.Step) -> v1.WatchTurnResponse:
    turn = v1.Turn(output_message=v1.CompletionMessage(content=content(text)), steps=steps)
    turn.completed_at.GetCurrentTime()
    return v1.WatchTurnResponse(turn_complete=v1.TurnComplete(turn=turn))


def fold(*events: v1.WatchTurnResponse) -> tuple[Fold, list[Any]]:
    begun = v1.ResponseObject(id="resp_1", status=v1.RESPONSE_STATUS_IN_PROGRESS)
    folding = Fold(response=begun, setup=Setup())
    made = folding.begin()
    for event in events:
        made += folding.feed(event)
    return folding, made


def test_a_step_that_begins_anew_and_says_the_same_is_one_message() -> None:
    folding, made = fold(
        progress("one "), progress("two "), restarted(), progress("one"), progress(" two thr"), progress("ee"),
        said("one two three"), complete("one two three"),
    )  # fmt: skip
    check_stream(made, folding.response)
    assert output_text(folding.response) == "one two three"
    assert len(folding.response.output) == 1


def test_what_a_step_that_begins_anew_does_not_stand_by_is_an_incomplete_message_and_not_in_the_dialog() -> None:
    for events in (
        [progress("one two"), restarted(), progress("one"), progress(" and only"), said("one and only")],
        [progress("one and only this"), restarted(), progress("one and only"), said("one and only")],
    ):
        folding, made = fold(*events, complete("one and only"))
        check_stream(made, folding.response)
        first, second = (item.message for item in folding.response.output)
        assert first.status == v1.RESPONSE_ITEM_STATUS_INCOMPLETE
        assert second.content[0].output_text.text == "one and only"
        assert [item.dialog for item in folding.output] == [(), None]


def logged(folding: Fold, index: int) -> list[str]:
    return [one.token for one in folding.response.output[index].message.content[0].output_text.logprobs]


def test_log_probabilities_are_of_the_message_and_not_of_thoughts_or_marks() -> None:
    text = "<think>hm</think>a b"
    pieces = [progress("<think>hm</", "<think>", "hm", "</"), progress("think>a", "think>", "a"), progress(" b", " b")]
    folding, made = fold(*pieces, said(text), complete(text))
    check_stream(made, folding.response)
    assert [item.WhichOneof("item") for item in folding.response.output] == ["reasoning", "message"]
    assert logged(folding, 1) == ["a", " b"]


def test_a_step_that_begins_anew_in_its_thoughts_thinks_them_once() -> None:
    text = "<think>one two</think>three four"
    begun = [progress("<think>one "), progress("two</think>thr", "thr")]
    again = [progress("<think>one two</thi"), progress("nk>thr", "nk>", "thr"), progress("ee four", "ee", " four")]
    folding, made = fold(*begun, restarted(), *again, said(text), complete(text))
    check_stream(made, folding.response)
    thought, message = folding.response.output
    assert thought.reasoning.content[0].text == "one two"
    assert message.message.content[0].output_text.text == "three four"
    assert logged(folding, 1) == ["thr", "ee", " four"]
    assert [item.dialog for item in folding.output] == [None, None]


def test_thoughts_that_a_step_did_not_stand_by_are_left_as_incomplete_items() -> None:
    text = "<think>other</think>yes"
    folding, made = fold(progress("<think>one"), restarted(), progress("<think>other"), said(text), complete(text))
    check_stream(made, folding.response)
    items = [item.WhichOneof("item") for item in folding.response.output]
    assert items == ["reasoning", "reasoning", "message"]
    assert folding.response.output[0].reasoning.status == v1.RESPONSE_ITEM_STATUS_INCOMPLETE
    assert output_text(folding.response) == "yes"


def test_a_response_that_is_cut_in_its_thoughts_has_them_as_they_are() -> None:
    message = v1.CompletionMessage(content=content("<think>on and on"), stop_reason=v1.STOP_REASON_OUT_OF_TOKENS)
    step = v1.Step(step_id="s", step_type=INFERENCE, inference=v1.InferenceStep(model_response=message))
    over = v1.WatchTurnResponse(step_complete=v1.TurnStepComplete(step_type=INFERENCE, step_details=step))
    folding, made = fold(progress("<think>on and"), over, complete("<think>on and on"))
    check_stream(made, folding.response)
    [thought] = folding.response.output
    assert thought.reasoning.content[0].text == "on and on"
    assert thought.reasoning.status == v1.RESPONSE_ITEM_STATUS_INCOMPLETE


def test_what_a_shield_says_is_a_refusal() -> None:
    violation = v1.StepViolation(violation_level="error", user_message="No.", metadata=Struct())
    judged = v1.Step(step_id="j", shield_call=v1.ShieldCallStep(violation=violation))
    folding, made = fold(complete("No.", judged))
    check_stream(made, folding.response)
    assert folding.response.output[0].message.content[0].refusal.refusal == "No."
    assert {"refusal_delta", "refusal_done"} <= set(kinds(made))


def test_a_tool_that_asks_a_person_something_fails_the_response_by_name() -> None:
    pending = v1.PendingCall(call=v1.ToolCall(call_id="c"), kind=v1.PENDING_KIND_INPUT, tool="test/ask")
    turn = v1.Turn(pending=[pending])
    folding, made = fold(v1.WatchTurnResponse(turn_awaiting_input=v1.TurnAwaitingInput(turn=turn)))
    check_stream(made, folding.response)
    assert folding.response.status == v1.RESPONSE_STATUS_FAILED
    assert "test/ask asks a person something" in folding.response.error.message
