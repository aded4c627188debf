"""Moderated streams: nothing leaves before its verdict, safe text leaves unchanged, and the guard is asked rarely."""

import re
from random import Random

import pytest

from llamastack import v1
from services.safety.segment import _is_abbreviation, _word_before, last_sentence_end
from stack_client.errors import InvalidArgumentError, NotFoundError
from tests.safety.mesh import SafetyMesh

WORDS = [f"word{number}" + ("." if number % 11 == 10 else "") + " " for number in range(500)]


def abbreviated(text: str, at: int) -> bool:
    return _is_abbreviation(_word_before(text, at))


def released(events: list[v1.StreamModerateResponse]) -> str:
    return "".join(event.released.text for event in events)


def end_of(events: list[v1.StreamModerateResponse]) -> str:
    kinds = [event.WhichOneof("event") for event in events]
    assert [kind for kind in kinds if kind in {"completed", "blocked", "failed"}] == kinds[-1:]
    return str(kinds[-1])


async def test_safe_text_leaves_unchanged_and_costs_at_most_six_guard_calls_per_500_tokens(mesh: SafetyMesh) -> None:
    events = await mesh.moderated(WORDS, await mesh.shield())
    assert end_of(events) == "completed"
    assert released(events) == "".join(WORDS)
    summary = events[-1].completed
    assert summary.guard_calls <= 6
    assert summary.released_offset == summary.received_offset == len("".join(WORDS))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


@pytest.mark.parametrize("place", range(0, 500, 7))
async def test_unsafe_text_at_any_place_never_leaves(mesh: SafetyMesh, place: int) -> None:
    planted = [*WORDS[:place], "mix the ", "forbidden ", "things ", "now. ", *WORDS[place:]]
    events = await mesh.moderated(planted, await mesh.shield())
    assert end_of(events) == "blocked"
    text = released(events)
    assert "forbidden" not in text
    assert "".join(planted).startswith(text)
    assert events[-1].blocked.violation.violation_level == v1.VIOLATION_LEVEL_ERROR
    assert events[-1].blocked.verdicts[0].codes == ["S1"]
    assert events[-1].blocked.released_offset == len(text)


async def test_text_sent_to_the_guard_grows_with_the_answer_and_not_with_its_square(mesh: SafetyMesh) -> None:
    sent = {}
    for length in (250, 500, 1000, 2000):
        mesh.seen.subjects.clear()
        await mesh.moderated((WORDS * 4)[:length], await mesh.shield())
        sent[length] = sum(len(text) for text in mesh.seen.texts)
    assert sent[2000] < 2.5 * sent[1000] < 6.25 * sent[500]


async def test_every_window_is_judged_with_the_text_before_it(mesh: SafetyMesh) -> None:
    await mesh.moderated(WORDS, await mesh.shield(), messages="What is it?")
    first, *others = mesh.seen.subjects
    assert first.settled == 0
    assert all(subject.settled > 0 for subject in others)
    assert all(len(subject.dialog) == 1 for subject in others)
    whole = "".join(WORDS)
    for before, after in zip(mesh.seen.texts, mesh.seen.texts[1:], strict=False):
        assert whole.index(after) < whole.index(before) + len(before)


async def test_a_first_sentence_leaves_at_its_end(mesh: SafetyMesh) -> None:
    async with mesh.client.safety.stream_moderate([await mesh.shield()], "Hi") as stream:
        await stream.send("A sentence. ")
        async for event in stream:
            if event.WhichOneof("event") == "released":
                assert event.released.text == "A sentence."
                break


@pytest.mark.parametrize("mode", ["dead", "crash", "nonsense", "half", "silent"])
async def test_a_guard_that_cannot_judge_ends_the_stream_and_nothing_leaves(mesh: SafetyMesh, mode: str) -> None:
    events = await mesh.moderated(WORDS[:100], await mesh.shield(mode=mode))
    assert end_of(events) == "failed"
    assert released(events) == ""
    assert events[-1].failed.message


async def test_a_shield_that_cannot_stream_holds_the_whole_text(mesh: SafetyMesh) -> None:
    events = await mesh.moderated(WORDS[:200], await mesh.shield(mode="whole"))
    assert [event.WhichOneof("event") for event in events] == ["verdict", "released", "completed"]
    assert mesh.seen.texts == ["".join(WORDS[:200])]


async def test_observing_releases_at_once_and_reports_what_it_finds(mesh: SafetyMesh) -> None:
    events = await mesh.moderated(["forbidden", " fruit"], await mesh.shield(), mode="observe")
    assert end_of(events) == "completed"
    assert released(events) == "forbidden fruit"
    assert events[-1].completed.violation.violation_level == v1.VIOLATION_LEVEL_ERROR


async def test_redacted_parts_never_leave_even_across_windows(mesh: SafetyMesh) -> None:
    name = await mesh.shield(action="redact")
    pieces = [*WORDS[:60], "forb", "idden7", " and ", *WORDS[60:300], "forbidden8", "."]
    events = await mesh.moderated(pieces, name)
    assert end_of(events) == "completed"
    assert released(events) == "".join(pieces).replace("forbidden7", "[S1]").replace("forbidden8", "[S1]")
    assert events[-1].completed.violation.violation_level == v1.VIOLATION_LEVEL_WARN


async def test_an_empty_text_is_safe_without_a_call(mesh: SafetyMesh) -> None:
    events = await mesh.moderated([], await mesh.shield())
    assert end_of(events) == "completed"
    assert mesh.seen.texts == []


async def test_wide_characters_and_code_are_released_as_they_came(mesh: SafetyMesh) -> None:
    text = "これは文です。次の文、です。\n```python\nx = 3.14  # e.g. this\n```\n🎉 Ünïcödé 1. 2. 3.\n" * 20
    events = await mesh.moderated(list(text), await mesh.shield())
    assert released(events) == text


async def test_pieces_out_of_order_and_missing_ends_are_refused(mesh: SafetyMesh) -> None:
    name = await mesh.shield()
    stub = v1.SafetyServiceStub(mesh.client.channel("safety"))
    start = v1.StreamModerateRequest(start=v1.ModerationStart(shield_ids=[name]))
    piece = v1.StreamModerateRequest(delta=v1.ModerationDelta(sequence=2, text="x"))
    for requests, words in (
        ([start, piece], "delta.sequence is 2; 1 is due"),
        ([piece], "is its start"),
        ([start], "without `end`"),
        ([start, start], "one start"),
    ):
        with pytest.raises(Exception, match=words):
            async for _ in stub.StreamModerate(iter(requests)):
                pass


async def test_an_unknown_shield_is_named(mesh: SafetyMesh) -> None:
    with pytest.raises(NotFoundError, match="no shield 'nobody'"):
        await mesh.moderated(["x"], "nobody")
    with pytest.raises(InvalidArgumentError, match="binds no shield"):
        await mesh.moderated(["x"])


@pytest.mark.parametrize("filler", [" ", "\n", ".", "!?", "\t \u2028", '."'])
async def test_floods_of_blanks_and_stops_neither_hang_nor_stall(mesh: SafetyMesh, filler: str) -> None:
    pieces = ["Hello there. ", *[filler * 1000] * 40, " the end."]
    events = await mesh.moderated(pieces, await mesh.shield())
    assert end_of(events) == "completed"
    assert released(events) == "".join(pieces)


def test_cuts_of_a_text_are_found_in_one_pass() -> None:
    """Beside the plain search for the same, on short texts of the characters that matter."""
    random = Random(0)
    for _ in range(2000):
        text = "".join(random.choices(["a", "b.", " ", ".", "!", "?", '"', "\n", ")", "3"], k=12))
        plain = 0
        for found in re.finditer(r"[.!?]+[\"')\]*_]*(?=\s)|\n+", text):
            stop = found[0].rstrip("\"')]*_")
            if stop.endswith(".") and abbreviated(text, found.start()):
                continue
            plain = found.end()
        assert last_sentence_end(text, 0, len(text)) == plain, repr(text)
