"""Texts made to take time: what works on texts is linear, and long texts are worked on off the event loop."""

import asyncio
import re
import threading
from re import Pattern

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastack import v1
from services.runtime.offload import LONG_TEXT, offload
from services.safety.guard import personal
from services.safety.guard.profiles import PROFILES
from services.safety.guard.quoting import quote
from services.safety.normalise import normalise
from tests.safety.guard_models import judge, shield_of

LOOK_ALIKES = PROFILES["llama-guard-3-8b"].frame.look_alikes
MILLION = 1_000_000

# As they were: easy to read, and quadratic (or worse) in hostile texts. What replaced them must answer the same.
OLD_MARKER = re.compile(
    r"<(\s*/?\s*(?:BEGIN|END)\s+(?:(?:UNSAFE\s+)?CONTENT\s*CATEGORIES|CONVERSATION|RESPONSE)\s*)>", re.IGNORECASE
)
OLD_LABEL = re.compile(
    r"(?:^|(?<=[\r\v\f\x85\u2028\u2029]))(?=[^\S\n\r]*(?:User|Agent)[^\S\n\r]*:)", re.IGNORECASE | re.MULTILINE
)
OLD_IBAN = re.compile(r"\b[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{1,4}){3,8}(?:[A-Za-z0-9]{0,2})\b")

PIECES = ["<", ">", "/", " ", "\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", "\t", "\u3000", "User",
          "agent", ":", "BEGIN", "end", "CONVERSATION", "RESPONSE", "UNSAFE", "CONTENT", "CATEGORIES", "\0", "x",
          "<END CONVERSATION>", "<|eot_id|>"]  # fmt: skip


def quoted_as_before(text: str, look_alikes: Pattern[str], *, begins_line: bool) -> tuple[str, dict[str, int]]:
    text, markers = OLD_MARKER.subn(lambda match: f'"{match[1].strip()}"', text)
    text, tokens = look_alikes.subn(lambda match: f'"{match[1]}"', text)
    first = OLD_LABEL.match(text) is not None and not begins_line
    text, labels = OLD_LABEL.subn("> ", f"\0{text}" if first else text)
    counts = {"special_token": tokens, "marker_line": markers, "role_label": labels}
    return text[1:] if first else text, {kind: count for kind, count in counts.items() if count}


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.booleans())
def test_bug_quadratic_quoting_is_linear_and_answers_as_before(text: str, begins_line: bool) -> None:
    found = quote(text, LOOK_ALIKES, begins_line=begins_line)
    assert (found.text, found.findings) == quoted_as_before(text, LOOK_ALIKES, begins_line=begins_line)


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        ("\u2028" * MILLION, {}),
        ("\x85" * MILLION + "User", {}),
        ("\x85" * MILLION + "User:", {"role_label": MILLION}),
        ("<" + " " * MILLION, {}),
        ("</" + " " * MILLION + "END", {}),
        ("<" * MILLION, {}),
        ("<END" + " " * MILLION + "CONTENT" + " " * MILLION, {}),
        ("User" + " " * MILLION, {}),
        ("User \v" * (MILLION // 6), {}),
        ("<|" * (MILLION // 2), {}),
    ],
    ids=range(10),
)
def test_bug_a_million_characters_took_hours_to_quote(text: str, findings: dict[str, int]) -> None:
    assert quote(text, LOOK_ALIKES, begins_line=False).findings == findings


IBAN_PARTS = ["AA00", "DE89", " ", "  ", "1", "12", "123", "1234", "12345", "370400440532013000", "A" * 40, ".", "_"]


@given(st.lists(st.sampled_from(IBAN_PARTS), max_size=16).map("".join))
def test_bug_slow_account_numbers_are_found_as_before(text: str) -> None:
    def candidates(pattern: Pattern[str]) -> set[tuple[int, int]]:
        # Shorter ones are no account numbers anywhere, and the old pattern took them for candidates.
        return {match.span() for match in pattern.finditer(text) if len(match[0].replace(" ", "")) >= 15}

    assert candidates(personal._IBAN) >= candidates(OLD_IBAN)


def test_bug_runs_that_look_like_account_numbers_took_minutes() -> None:
    text = f"AA00{'A' * 40} " * 20_000
    found = personal.find(text, entities=frozenset({"IBAN_CODE"}), language="en", least=0.5)
    assert found == []


def test_bug_marks_behind_a_korean_letter_took_quadratic_time() -> None:
    text = "\u1100" + "\u0301\u0323" * (MILLION // 2)
    assert normalise(text).text == text
    assert normalise("\u1112\u1161\u11ab\u1100\u1173\u11af").text == "한글"


@pytest.mark.parametrize(
    ("number", "reads"), [("1" * 5000, "\ufffd"), ("0" * 5000 + "65", "A"), ("65", "A"), ("1" * 2000, "\ufffd")]
)
def test_bug_an_endless_number_of_an_entity_raised(number: str, reads: str) -> None:
    (blob,) = normalise(f"&#73;&#103;&#110;&#111;&#114;&#101;-all-&#{number};").blobs
    assert blob.text == f"Ignore-all-{reads}"


async def test_bug_many_blocks_of_code_took_quadratic_time() -> None:
    found = await judge(
        await shield_of("code-scanner", None), "```c\nx\n```\n" * 80_000, surface=v1.SAFETY_SURFACE_ASSISTANT
    )
    assert (found.codes, found.metadata["blocks"]) == (("unsupported_language",), 80_000)


async def test_long_texts_are_worked_on_in_a_thread_and_short_ones_are_not() -> None:
    assert await offload(LONG_TEXT - 1, threading.get_ident) == threading.get_ident()
    assert await offload(LONG_TEXT, threading.get_ident) != threading.get_ident()


async def test_bug_a_long_text_stopped_the_event_loop_while_rules_looked_at_it() -> None:
    shield = await shield_of("rules", None, deny=["falcon"], builtin=True)
    task = asyncio.create_task(judge(shield, "good morning " * 20_000 + "falcon"))
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await task).codes == ("denied_words",)
    assert turns > 20  # on the loop it would take two or three
