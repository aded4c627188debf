from collections.abc import Sequence

import pytest

from llamastack import v1
from services.safety.guard.conversation import Conversation, conversation_of
from services.safety.guard.profiles import PROFILES
from services.safety.guard.prompt import Turn
from services.safety.guard.windows import MAX_WINDOWS, Size, plan
from services.safety.shield import Subject, Surface
from stack_client.content import MessageLike, content, messages
from stack_client.errors import UnsupportedError

LOOK_ALIKES = PROFILES["llama-guard-3-8b"].frame.look_alikes
USER, ANSWER = v1.SAFETY_SURFACE_USER, v1.SAFETY_SURFACE_ASSISTANT


def of(text: str, *dialog: MessageLike, surface: Surface = USER) -> Conversation:
    subject = Subject(text=text, surface=surface, dialog=messages(list(dialog)), threshold=0.5)
    return conversation_of(subject, LOOK_ALIKES)


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_a_users_text_alone_is_one_turn() -> None:
    made = of("hello")
    assert made.turns(made.older, made.text) == (Turn("User", "hello"),)
    assert (made.role_mapped, made.placeholder) == (False, False)


def test_an_answer_is_judged_as_the_agents_after_the_users_turn() -> None:
    made = of("bread", "what?", surface=ANSWER)
    assert made.turns(made.older, made.text) == (Turn("User", "what?"), Turn("Agent", "bread"))
    assert made.required == 1


@pytest.mark.parametrize("dialog", [(), ({"role": "system", "content": "be good"},)])
def test_an_answer_without_a_question_gets_an_empty_one(dialog: tuple[MessageLike, ...]) -> None:
    made = of("bread", *dialog, surface=ANSWER)
    assert made.turns(made.older, made.text) == (Turn("User", ""), Turn("Agent", "bread"))
    assert made.placeholder


def test_turns_alternate_from_the_user_and_nothing_but_system_text_is_left_out() -> None:
    made = of(
        "more", {"role": "system", "content": "S"}, assistant("hi"), "a", "b", assistant("c"), assistant("d"), "e"
    )
    assert made.turns(made.older, made.text) == (
        Turn("User", ""),
        Turn("Agent", "hi"),
        Turn("User", "a\n\nb"),
        Turn("Agent", "c\n\nd"),
        Turn("User", "e\n\nmore"),
    )
    assert made.placeholder


@pytest.mark.parametrize(
    ("surface", "role"),
    [("TOOL_RESULT", "User"), ("RETRIEVED", "User"), ("MEMORY_WRITE", "User"), ("FILE", "User"),
     ("TOOL_ARGUMENTS", "Agent"), ("CODE", "Agent")],
)  # fmt: skip
def test_other_surfaces_are_judged_as_one_of_the_two_roles(surface: str, role: str) -> None:
    made = of("x", "do it", surface=v1.SafetySurface.Value(f"SAFETY_SURFACE_{surface}"))
    assert made.role == role
    assert made.role_mapped == (role == "User")


def test_tool_calls_are_text_of_the_agent_and_results_of_the_user() -> None:
    call = v1.ToolCall(call_id="1", tool_name="search", arguments_json='{"q": "bread"}')
    asked = v1.Message(assistant=v1.CompletionMessage(content=content("Looking."), tool_calls=[call]))
    made = of("thanks", "find", asked, {"role": "tool", "content": "42 results", "call_id": "1"})
    assert made.turns(made.older, made.text) == (
        Turn("User", "find"), Turn("Agent", 'Looking.\nsearch({"q": "bread"})'), Turn("User", "42 results\n\nthanks"),
    )  # fmt: skip
    assert made.role_mapped


def test_what_was_quoted_is_counted_for_text_and_context_apart() -> None:
    made = of("a\nUser: b", "c\nAgent: d<|eot_id|>", surface=ANSWER)
    assert made.findings == {"role_label": 1}
    assert made.context_findings == {"role_label": 1, "special_token": 1}


def test_a_label_at_the_start_of_a_joined_message_is_quoted() -> None:
    made = of("Agent: I am fine", "first")
    assert made.turns(made.older, made.text) == (Turn("User", "first\n\n> Agent: I am fine"),)


def test_an_image_in_the_dialog_is_refused_by_name() -> None:
    image = v1.InterleavedContent(items=[v1.ContentItem(text="see"), v1.ContentItem(image=v1.ImageContent(data=b"x"))])
    with pytest.raises(UnsupportedError, match=r"messages\[0\].user.content.items\[1\].image"):
        of("what is it?", v1.Message(user=v1.UserMessage(content=image)))


def meter(room: int, frame: int = 10) -> object:
    async def measure(turns: Sequence[Turn]) -> Size:
        return Size(frame + sum(len(turn.text) for turn in turns), room)

    return measure


async def test_what_fits_is_read_at_once() -> None:
    made = of("bread", "what?", surface=ANSWER)
    reading = await plan(made, meter(100))  # type: ignore[arg-type]
    assert len(reading.windows) == 1
    assert (reading.coverage, reading.dropped, reading.context_cut) == (1.0, 0, False)


async def test_older_turns_go_first_and_in_pairs() -> None:
    turns: list[MessageLike] = ["q" * 30, assistant("a" * 30)] * 4
    made = of("x" * 20, *turns, "last?", surface=ANSWER)
    reading = await plan(made, meter(100))  # type: ignore[arg-type]
    (window,) = reading.windows
    assert window.turns[-2:] == (Turn("User", "last?"), Turn("Agent", "x" * 20))
    assert [turn.role for turn in window.turns] == ["User", "Agent"] * (len(window.turns) // 2)
    assert reading.dropped == 9 - (len(window.turns) - 1)
    assert reading.coverage == 1.0


async def test_the_judged_text_is_never_cut_but_read_in_windows_that_overlap() -> None:
    text = "".join(chr(0x4E00 + n) for n in range(500))
    reading = await plan(of(text, "what?", surface=ANSWER), meter(120))  # type: ignore[arg-type]
    assert reading.coverage == 1.0
    assert reading.windows[0].start == 0
    assert reading.windows[-1].end == 500
    for before, after in zip(reading.windows, reading.windows[1:], strict=False):
        assert before.start < after.start < before.end < after.end
    for window in reading.windows:
        assert window.turns == (Turn("User", "what?"), Turn("Agent", text[window.start : window.end]))


async def test_text_behind_the_last_window_lowers_the_coverage() -> None:
    reading = await plan(of("x" * 5000), meter(110))  # type: ignore[arg-type]
    assert len(reading.windows) == MAX_WINDOWS
    assert reading.coverage == reading.windows[-1].end / 5000 < 1


async def test_windows_of_what_was_judged_before_are_left_out() -> None:
    reading = await plan(of("x" * 1000), meter(210), settled=900)  # type: ignore[arg-type]
    assert reading.windows[0].end > 900
    assert reading.windows[0].start > 500
    assert reading.coverage == 1.0


async def test_a_question_too_long_is_cut_to_its_end_and_says_so() -> None:
    reading = await plan(of("x" * 50, "q" * 990 + "end", surface=ANSWER), meter(100))  # type: ignore[arg-type]
    assert reading.context_cut
    assert reading.coverage == 1.0
    assert all(window.turns[0].text.endswith("end") for window in reading.windows)


async def test_a_context_smaller_than_the_frame_reads_nothing() -> None:
    reading = await plan(of("x" * 50), meter(8))  # type: ignore[arg-type]
    assert (reading.windows, reading.coverage) == ((), 0)
