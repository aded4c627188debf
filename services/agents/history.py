"""What the model is shown: instructions, earlier turns, and the turn so far."""

import itertools
from collections.abc import Iterable, Sequence

from llamastack import v1
from services.agents.compaction import compacted
from services.agents.retrieval import retrieved
from services.agents.shields import blocking, judged_until
from stack_client.content import content

SUMMARY = "[Summary of the dialog so far]"
UNSEEN = "[An image, which this model cannot see. It is attached for the user.]"
WITHHELD = "[Withheld by a safety shield.]"
NO_RESULT = "There is no result: the turn ended before the tool answered."


def dialog(
    config: v1.AgentConfig, earlier: Iterable[v1.Turn], current: v1.Turn, *, before: Iterable[v1.Message] = ()
) -> list[v1.Message]:
    """The messages of the next inference step. Every tool call in it has a result, or models refuse the history.

    Args:
        config: Of the agent.
        earlier: Turns of the session before this one.
        current: The turn.
        before: What stands before the session's turns.
    """
    messages: list[v1.Message] = []
    if config.instructions:
        messages.append(v1.Message(system=v1.SystemMessage(content=content(config.instructions))))
    messages += before
    earlier = list(earlier)
    covered = compacted(earlier, current)
    if covered is None:
        messages += of_turns(earlier, config)
        return messages + _of_turn(current, with_context=True, judged=None)
    if covered.through_turn_id == current.turn_id:
        return messages + _of_turn(current, with_context=True, judged=None, covered=covered)
    ids = [turn.turn_id for turn in earlier]
    begin = ids.index(covered.through_turn_id) + 1 if covered.through_turn_id in ids else 0
    messages.append(_summary(covered))
    messages += of_turns(earlier[begin:], config)
    return messages + _of_turn(current, with_context=True, judged=None)


def of_turns(turns: Iterable[v1.Turn], config: v1.AgentConfig) -> list[v1.Message]:
    """The messages of turns that have ended."""
    return [
        message
        for turn in turns
        for message in _of_turn(turn, with_context=False, judged=judged_until(turn) if config.input_shields else None)
    ]


def through_step(turn: v1.Turn, step_id: str, *, after: str = "") -> list[v1.Message]:
    """The messages of a running turn's steps up to one, behind another one where that is given."""
    part = v1.Turn()
    part.CopyFrom(turn)
    ids = [step.step_id for step in turn.steps]
    del part.steps[ids.index(step_id) + 1 :]
    if after in ids:
        del part.steps[: ids.index(after) + 1]
        del part.input_messages[:]
    return _of_turn(part, with_context=False, judged=None)


def without_images(messages: Iterable[v1.Message]) -> list[v1.Message]:
    """The messages for a model that reads text only: images that tools gave are named, those of users stay."""
    found = []
    for message in messages:
        shown = v1.Message()
        shown.CopyFrom(message)
        for item in shown.tool.content.items if shown.HasField("tool") else ():
            if item.HasField("image"):
                item.text = UNSEEN
        found.append(shown)
    return found


def droppable(messages: Sequence[v1.Message]) -> list[range]:
    """Parts of a dialog that can be left out, oldest first, by the places of their messages.

    They are what users said with all that followed, but not the last; then, of what followed that, answers with the
    results of their calls, but not the last. Instructions stay.
    """
    kinds = [message.WhichOneof("message") for message in messages]
    users = [place for place, kind in enumerate(kinds) if kind == "user"]
    ends = [place for place, kind in enumerate(kinds) if kind in {"user", "system"}]
    parts = [range(begin, next(end for end in ends if end > begin)) for begin in users[:-1]]
    said = [place for place, kind in enumerate(kinds) if kind == "assistant" and users and place > users[-1]]
    return parts + [range(begin, end) for begin, end in itertools.pairwise(said)]


def without_oldest(messages: Sequence[v1.Message], count: int) -> list[v1.Message]:
    """The messages without the first `count` parts that can be left out."""
    if not count:
        return list(messages)
    gone = {place for part in droppable(messages)[:count] for place in part}
    return [message for place, message in enumerate(messages) if place not in gone]


def _summary(covered: v1.CompactionStep) -> v1.Message:
    # Never as instructions: it repeats what users and tools said.
    return v1.Message(user=v1.UserMessage(content=content(f"{SUMMARY} {covered.summary}")))


def _of_turn(
    turn: v1.Turn, *, with_context: bool, judged: int | None, covered: v1.CompactionStep | None = None
) -> list[v1.Message]:
    """A turn's messages.

    Args:
        turn: With its steps.
        with_context: Whether retrieved text that came with the question is shown.
        judged: Up to which step what the model read was judged; None where nobody asked for that.
        covered: The summary that stands for the turn's first steps.
    """
    messages = []
    violation = blocking(turn)
    if violation is not None and not any(step.WhichOneof("details") == "inference" for step in turn.steps):
        return []  # what the user wrote was refused: no later answer may follow from it
    if judged == -1:
        return []  # it ended before anybody had judged what the user wrote
    for entry in turn.input_messages:
        if entry.WhichOneof("message") == "user":
            message = v1.Message(user=entry.user)
            if not with_context:
                message.user.ClearField("context")  # retrieved text belongs to its own turn only
        else:
            message = v1.Message(tool=entry.tool)
        messages.append(message)
    if with_context:
        _show_retrieved(turn, messages)
    ids = [step.step_id for step in turn.steps]
    begin = ids.index(covered.through_step_id) + 1 if covered else 0
    if covered:
        messages.append(_summary(covered))
    for index, step in enumerate(turn.steps[begin:], begin):
        match step.WhichOneof("details"):
            case "inference" if step.HasField("completed_at"):  # not the one that is about to be generated
                messages.append(v1.Message(assistant=step.inference.model_response))
            case "tool_execution":
                messages += _tool_messages(step.tool_execution, withheld=judged is not None and index > judged)
    if violation is not None:
        _mark_withheld(messages)
    return _without_dangling_calls(messages)


def _show_retrieved(turn: v1.Turn, messages: Sequence[v1.Message]) -> None:
    """Put what memory knew beside the question: as the user's context, never as instructions."""
    found = retrieved(turn)
    questions = [message for message in messages if message.WhichOneof("message") == "user"]
    if found and questions:
        questions[-1].user.context.items.extend(found)


def _mark_withheld(messages: list[v1.Message]) -> None:
    """Say where a shield ended a turn: in place of the tools' results that it refused, or behind what it let pass."""
    if messages and messages[-1].WhichOneof("message") == "assistant":
        messages[-1].assistant.content.items.append(v1.ContentItem(text=WITHHELD))
        messages[-1].assistant.ClearField("tool_calls")
    for message in reversed(messages):
        if message.WhichOneof("message") != "tool":
            break
        message.tool.content.CopyFrom(content(WITHHELD))


def _tool_messages(step: v1.ToolExecutionStep, *, withheld: bool) -> list[v1.Message]:
    if withheld:  # the turn ended before anybody had judged them
        return [v1.Message(tool=_answer(call, content(WITHHELD))) for call in step.tool_calls]
    answers = {response.call_id: response.content for response in step.tool_responses}
    return [v1.Message(tool=_answer(call, answers.get(call.call_id, content(NO_RESULT)))) for call in step.tool_calls]


def _answer(call: v1.ToolCall, result: v1.InterleavedContent) -> v1.ToolResponseMessage:
    return v1.ToolResponseMessage(call_id=call.call_id, tool_name=call.tool_name, content=result)


def _without_dangling_calls(messages: Sequence[v1.Message]) -> list[v1.Message]:
    """Answer calls whose turn ended before their tools were even started."""
    answered = {message.tool.call_id for message in messages if message.WhichOneof("message") == "tool"}
    result = []
    for message in messages:
        result.append(message)
        result += [
            v1.Message(tool=_answer(call, content(NO_RESULT)))
            for call in message.assistant.tool_calls
            if call.call_id not in answered
        ]
    return result
