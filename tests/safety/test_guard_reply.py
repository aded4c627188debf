import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.safety.guard.categories import Custom, category_set
from services.safety.guard.profiles import PROFILES
from services.safety.guard.reply import parse_reply

LG3 = category_set(PROFILES["llama-guard-3-8b"], excluded=("S6",), custom={"C1": Custom(name="Spoilers")})


@pytest.mark.parametrize("text", ["safe", "Safe", "SAFE", "\n\nsafe", " safe \n"])
def test_only_the_safe_word_alone_is_safe(text: str) -> None:
    assert parse_reply(text, LG3).verdict == "safe"


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("unsafe\nS1", ("S1",)),
        ("\n\nunsafe\nS1,S9", ("S1", "S9")),
        ("UNSAFE S1 , s9", ("S1", "S9")),
        ("unsafe\n\nS10\nS10,S1\n", ("S10", "S1")),
        ("unsafe\nS1,S1,S1", ("S1",)),
        ("unsafe\nC1", ("C1",)),
        ("unsafe\nS6,S2", ("S2",)),
    ],
)
def test_codes_are_read_in_any_spacing_and_once(text: str, codes: tuple[str, ...]) -> None:
    reply = parse_reply(text, LG3)
    assert reply.verdict == "unsafe"
    assert reply.own_codes == codes


def test_unknown_codes_are_kept_apart() -> None:
    reply = parse_reply("unsafe\nS1,S77,Q3", LG3)
    assert (reply.verdict, reply.own_codes, reply.unknown_codes) == ("unsafe", ("S1",), ("S77", "Q3"))


@pytest.mark.parametrize("text", ["unsafe", "unsafe\n", "unsafe\nS99", "unsafe\nS6,S99"])
def test_unsafe_without_a_known_code_is_unsafe_all_the_same(text: str) -> None:
    reply = parse_reply(text, LG3)
    assert (reply.verdict, reply.own_codes) == ("unsafe", ())


def test_excluded_codes_alone_are_no_violation() -> None:
    reply = parse_reply("unsafe\nS6", LG3)
    assert (reply.verdict, reply.excluded_codes) == ("excluded", ("S6",))


@pytest.mark.parametrize(
    "text",
    ["", "\n\n", "safe\nS1", "safe.", "safe, because", "safely", "I cannot help with that", "S1", "un safe",
     "\u017fafe", "not safe", "unsafely", "unsafe-ish"],
)  # fmt: skip
def test_anything_else_is_indeterminate(text: str) -> None:
    assert parse_reply(text, LG3).verdict == "indeterminate"


@pytest.mark.parametrize(
    "text",
    ["unsafe because of S1", "unsafe\nS1 (violence)", "unsafe\nS", "unsafe.", "Unsafe (S1)", "unsafe\nS1234",
     "unsafe\nS1\nsafe", "unsafe\nViolent Crimes"],
)  # fmt: skip
def test_an_odd_answer_that_begins_with_unsafe_is_unsafe(text: str) -> None:
    reply = parse_reply(text, LG3)
    assert (reply.verdict, reply.own_codes) == ("unsafe", ())


def test_an_answer_that_was_cut_off_is_safe_in_no_case() -> None:
    assert parse_reply("safe", LG3, complete=False).verdict == "indeterminate"
    assert parse_reply("unsafe\nS1", LG3, complete=False).verdict == "unsafe"


@given(
    st.one_of(
        st.text(),
        st.text(alphabet="unsafeUNSAFE S1,\n\t0C9"),
        st.binary().map(lambda raw: raw.decode(errors="replace")),
    )
)
@example("safe")
@example("unsafe\n" + "S1," * 100_000)
def test_no_reply_raises_and_none_is_safe_but_the_word(text: str) -> None:
    reply = parse_reply(text, LG3)
    assert (reply.verdict == "safe") == bool(re.fullmatch("[sS][aA][fF][eE]", text.strip()))
