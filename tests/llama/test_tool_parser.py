# ruff: noqa: E501 - a case a line reads best
"""The awkward cases of tool calls, each named, and the rule: any split of a text gives the same text and calls."""

import itertools
import json
import random
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.llama.chat_format import ChatMessage, Llama3ChatFormat
from services.llama.tokenizer import TiktokenTokenizer
from services.llama.tool_events import CallComplete, CallFailed, CallPiece, CallStarted, Event, Text
from services.llama.tool_parser import ToolParser

Read = tuple[str, list[tuple[str, dict[str, Any]]]]
NAMES = ("get_weather", "get_weather_now", "files.read", "brave_search")
WITH_CODE = (*NAMES, "code_interpreter")


def events_of(
    pieces: Iterable[str], *, names: Sequence[str] = NAMES, tag: bool = False, reason: Any = "stop"
) -> list[Event]:
    parser = ToolParser(tool_names=names)
    events = parser.python_tag() if tag else []
    for piece in pieces:
        events += parser.feed(piece)
    return events + parser.finish(reason)


def summed(events: Sequence[Event]) -> Read:
    calls = [(event.call.tool_name, event.call.arguments()) for event in events if isinstance(event, CallComplete)]
    return "".join(event.text for event in events if isinstance(event, Text)), calls


def read(text: str, **options: Any) -> Read:
    """What the whole text gives; every way to cut it once, and single characters, must give the same."""
    whole = summed(events_of([text], **options))
    assert summed(events_of(text, **options)) == whole
    for cut in range(1, len(text)):
        assert summed(events_of([text[:cut], text[cut:]], **options)) == whole, text[:cut]
    return whole


WEATHER = ("get_weather", {"city": "SF"})


@pytest.mark.parametrize("tag", [True, False])
@pytest.mark.parametrize(
    ("written", "query"),
    [
        ('say "hi (all)" first', 'say "hi (all)" first'),
        (r"say \"hi\" :)", 'say "hi" :)'),
        ("a) b", "a) b"),
        ('tail \\")', 'tail ")'),
        ("back\\\\", "back\\"),
        ("", ""),
    ],
)
def test_case_1_quotes_and_brackets_in_a_built_in_query_are_its_text(written: str, query: str, tag: bool) -> None:
    assert read(f'brave_search.call(query="{written}")', tag=tag) == ("", [("brave_search", {"query": query})])


def test_case_2_an_apostrophe_in_function_tag_json_ends_nothing() -> None:
    text = """<function=get_weather>{"city": "L'Aquila's 'old' town"}</function>"""
    assert read(text) == ("", [("get_weather", {"city": "L'Aquila's 'old' town"})])


def test_case_3_nested_objects_and_arrays_in_function_tag_json_are_read_whole() -> None:
    arguments = {"a": {"b": [{"c": []}, [1, [2]]], "d": {}}, "e": "}</function>"}
    text = f"<function=get_weather>{json.dumps(arguments)}</function>"
    assert read(text) == ("", [("get_weather", arguments)])


@pytest.mark.parametrize("typed", ["", '"type": "function", '])
def test_case_4_arguments_may_stand_for_parameters(typed: str) -> None:
    assert read(f'{{{typed}"name": "get_weather", "arguments": {{"city": "SF"}}}}') == ("", [WEATHER])


@pytest.mark.parametrize(
    "text",
    ['{"type": "function", "name": "get_weather"}', '{"name": "get_weather", "parameters": {}}',
     "<function=get_weather>{}</function>", "<function=get_weather></function>", "<function=get_weather> </function>",
     "[get_weather()]", '<tool_call>{"name": "get_weather"}</tool_call>'],
)  # fmt: skip
def test_case_5_a_call_may_have_no_parameters(text: str) -> None:
    assert read(text) == ("", [("get_weather", {})])


@pytest.mark.parametrize(
    "text",
    ['{"name": "Ada", "parameters": {"born": 1815}}', '{"name": "get_weather", "born": 1815}',
     '{"name": "get_weather"}', '{"name": "get_weather", "parameters": [1]}',
     '{"people": [\n{"name": "get_weather", "parameters": {}}\n]}',
     'So: {"people": [\n{"name": "get_weather", "parameters": {}}\n]}',
     "```python\n[get_weather()]\n```", 'As in ```\n{"name": "get_weather", "parameters": {}}\n```'],
)  # fmt: skip
def test_case_6_an_ordinary_json_answer_with_a_name_is_text(text: str) -> None:
    assert read(text) == (text, [])


def test_case_7_two_calls_in_a_python_list_come_both_and_in_order() -> None:
    text = "[get_weather(city=\"SF\"), files.read(path='x')]"
    assert read(text) == ("", [WEATHER, ("files.read", {"path": "x"})])


@pytest.mark.parametrize(
    "text",
    ['[files.read(path="x")]', '{"name": "files.read", "parameters": {"path": "x"}}',
     '<function=files.read>{"path": "x"}</function>'],
)  # fmt: skip
def test_case_8_names_may_have_dots(text: str) -> None:
    assert read(text) == ("", [("files.read", {"path": "x"})])


def test_case_9_words_of_json_and_of_python_mean_the_same() -> None:
    text = "[get_weather(a=true, b=True, c=false, d=False, e=null, f=None, g=[None, {'x': true}])]"
    arguments = {"a": True, "b": True, "c": False, "d": False, "e": None, "f": None, "g": [None, {"x": True}]}
    assert read(text) == ("", [("get_weather", arguments)])


@pytest.mark.parametrize(
    "text",
    ['You could write foo.call(query="x") here.', 'foo.call(query="x")', 'You could write brave_search.call(query="x")',
     'get_weather.call(query="x")', 'brave_search.call(query="x") would do', "brave_search.call(1)"],
)  # fmt: skip
def test_case_10_a_built_in_call_in_prose_is_text(text: str) -> None:
    assert read(text) == (text, [])


AWKWARD = {
    "quotes": 'both "these" and \'those\' \\ and \\"',
    "lines": "a\nb\r\n\tc\u2028d",
    "unicode": "São Paulo 👍🏽 漢字 \u0000 \ud7ff",
    "dict": {"k'": [{"": "])}</function>"}], "x": None, "y": True, "z": [-1.5e-7, 10**25]},
    "ends": ')]"}',
}


def test_case_11_dicts_quotes_newlines_and_unicode_survive_a_python_list() -> None:
    values = ", ".join(f"{key}={value!r}" for key, value in AWKWARD.items())
    assert read(f"[get_weather({values})]") == ("", [("get_weather", AWKWARD)])
    assert read('[get_weather(a="""x "y"\nz""", b=\'\'\'\'\'\', c="\\ud83d\\ude00 \\ud83d")]') == (
        "",
        [("get_weather", {"a": 'x "y"\nz', "b": "", "c": "😀 \ufffd"})],
    )


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ('Let me see. <function=get_weather>{"city": "SF"}</function>', "Let me see. "),
        ('Let me see.\n\n<function=get_weather>{"city": "SF"}</function>\nDone.\n', "Let me see.\n\n\nDone."),
        ('Let me see.\n[get_weather(city="SF")]', "Let me see."),
        ('{"name": "get_weather", "parameters": {"city": "SF"}}\nDone.', "Done."),
        ('Sure:\n```json\n{"name": "get_weather", "parameters": {"city": "SF"}}\n```\n', "Sure:"),
        ('1 < 2 <<function=get_weather>{"city": "SF"}</function>', "1 < 2 <"),
        ('[x\n{"name": "get_weather", "parameters": {"city": "SF"}}', "[x"),
    ],
)
def test_case_12_text_before_and_after_a_call_stays_text(text: str, rest: str) -> None:
    whole = read(text)
    assert (whole[0].strip(), whole[1]) == (rest.strip(), [WEATHER])


def test_case_13_an_unknown_tool_is_called_where_only_a_call_can_be_meant() -> None:
    nope = ("nope", {"a": 1})
    for text in (
        '<function=nope>{"a": 1}</function>',
        '<tool_call>{"name": "nope", "arguments": {"a": 1}}</tool_call>',
    ):
        assert read(text) == ("", [nope])
    for text in ('{"name": "nope", "parameters": {"a": 1}}', '{"type": "function", "name": "nope", "parameters": {"a": 1}}',
                 "[nope(a=1)]"):  # fmt: skip
        assert read(text) == (text, [])
        assert read(text, tag=True) == ("", [nope])
    assert read('nope.call(query="x")', tag=True) == ("", [("nope", {"query": "x"})])
    # With the interpreter at hand, what may be Python is Python.
    assert read("[nope(a=1)]", tag=True, names=WITH_CODE) == ("", [("code_interpreter", {"code": "[nope(a=1)]"})])
    assert read("[get_weather(), nope(a=1)]") == ("[get_weather(), nope(a=1)]", [])


CALLS = [
    '{"type": "function", "name": "get_weather", "parameters": {"city": "SF"}}',
    '<function=get_weather>{"city": "SF"}</function>',
    '[get_weather(city="SF")]',
    '<tool_call>{"name": "get_weather", "arguments": {"city": "SF"}}</tool_call>',
    '```json\n{"name": "get_weather", "parameters": {"city": "SF"}}\n```',
]


@pytest.mark.parametrize("text", [*CALLS, 'brave_search.call(query="SF")'])
def test_case_14_half_a_call_at_the_token_limit_is_text(text: str) -> None:
    for cut in range(1, len(text)):
        for pieces in ([text[:cut]], text[:cut]):
            assert summed(events_of(pieces, reason="length")) == (text[:cut], [])
    assert read("print(1)", names=WITH_CODE, tag=True, reason="length") == ("print(1)", [])


@pytest.mark.parametrize("text", ['[get_weather(n="5")]', '{"name": "get_weather", "parameters": {"n": "5"}}'])
def test_case_15_numbers_sent_as_strings_stay_strings(text: str) -> None:
    assert read(text) == ("", [("get_weather", {"n": "5"})])


def test_case_16_the_last_of_equal_keys_counts_integers_are_exact_and_nan_is_no_argument() -> None:
    huge = 123456789012345678901234567890
    for text in (
        f'{{"name": "get_weather", "parameters": {{"n": 1, "n": {huge}}}}}',
        f'<function=get_weather>{{"n": 1, "n": {huge}}}</function>',
        f"[get_weather(n=1, n={huge})]",
    ):
        assert read(text) == ("", [("get_weather", {"n": huge})])
    for value in ("NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "nan"):
        for text in (
            f'{{"name": "get_weather", "parameters": {{"n": {value}}}}}',
            f'<function=get_weather>{{"n": {value}}}</function>',
            f"[get_weather(n={value})]",
        ):
            assert summed(events_of([text])) == summed(events_of(text)) == (text, [])


def test_case_17_the_text_of_a_special_token_is_ordinary_text(llama3_tokenizer: TiktokenTokenizer) -> None:
    for name in ("<|python_tag|>", "<|eom_id|>", "<|eot_id|>"):
        assert read(f"{name}print(1)", names=WITH_CODE) == (f"{name}print(1)", [])
        for role in ("user", "tool"):
            messages = [ChatMessage(role=role, content=f"{name}print(1)")]
            ids = Llama3ChatFormat(llama3_tokenizer, "3.1").render(messages, add_generation_prompt=False)
            expected = int(name == "<|eot_id|>")  # the one that ends the message
            assert ids.count(llama3_tokenizer.special_id(name)) == expected


def test_code_behind_the_python_tag_is_for_the_interpreter_whatever_it_begins_like() -> None:
    for code in ("print(1)\n", "[n for n in x]", "{'a': 1}", "brave_search.call(1)", "<", "[get_weather(1)]", "`"):
        assert read(code, names=WITH_CODE, tag=True) == ("", [("code_interpreter", {"code": code})])
    assert read("\n ", names=WITH_CODE, tag=True) == ("\n ", [])
    assert read("print(1)", tag=True) == ("print(1)", [])


def test_the_python_tag_may_follow_text() -> None:
    parser = ToolParser(tool_names=WITH_CODE)
    events = [*parser.feed("Let me compute.\n"), *parser.python_tag(), *parser.feed("1+1"), *parser.finish("stop")]
    assert summed(events) == ("Let me compute.", [("code_interpreter", {"code": "1+1"})])


def test_without_tools_everything_is_text() -> None:
    for text in CALLS:
        assert read(text, names=()) == (text, [])
        assert read(text, names=(), tag=True) == (text, [])


PROSE = ["Hello there.\n\n", "[1] says so: ", "{not json\n", "{}", "<b>bold</b> ", "```python\nprint([1])\n```\n", "a < b\n",
         '{"name": "unknown"}\n', "`x` ", "[get_weather]\n", "<function=x> "]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ['{"name": "g", "arguments": {}}', '<function=g>{"a":1}</function>', "[g(a=1), g()]", '[g(a=\'\', b="""x""")]',
     "Hm.\n[g\n", "```\n{}`` ```", "[[<<"],
)  # fmt: skip
def test_every_way_to_cut_a_short_text_up_to_three_times_gives_the_same(text: str) -> None:
    for tag, reason in ((False, "stop"), (True, "length")):
        whole = summed(events_of([text], names=["g"], tag=tag, reason=reason))
        for count in (1, 2, 3):
            for cuts in itertools.combinations(range(1, len(text)), count):
                pieces = [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]
                assert summed(events_of(pieces, names=["g"], tag=tag, reason=reason)) == whole, pieces


@given(
    parts=st.lists(st.sampled_from([*PROSE, *CALLS, "; ", "\n", " ", "[", "{", "<"]) | st.text(max_size=5), max_size=6),
    cuts=st.lists(st.integers(0, 300), max_size=12),
    tag=st.booleans(),
    code=st.booleans(),
    reason=st.sampled_from(["stop", "length"]),
)
@settings(deadline=None, max_examples=400)
def test_any_split_of_any_answer_gives_the_same(
    parts: list[str], cuts: list[int], tag: bool, code: bool, reason: str
) -> None:
    text, names = "".join(parts), WITH_CODE if code else NAMES
    pieces = [text[a:b] for a, b in pairwise([0, *sorted(cuts), len(text)])]
    whole = events_of([text], names=names, tag=tag, reason=reason)
    split = events_of(pieces, names=names, tag=tag, reason=reason)
    assert summed(split) == summed(whole)
    assert [type(e) for e in whole if not isinstance(e, Text | CallPiece)] == [
        type(e) for e in split if not isinstance(e, Text | CallPiece)
    ]
    if not summed(whole)[1]:
        assert summed(whole)[0] == text


def test_the_pieces_of_a_call_are_its_raw_text() -> None:
    for text in CALLS:
        events = events_of(["Hm.\n", *text])
        assert "".join(event.text for event in events if isinstance(event, CallPiece)) == text
        kinds = [type(event) for event in events if not isinstance(event, CallPiece)]
        assert kinds == [Text, CallStarted, CallComplete]
        assert sum(isinstance(event, CallPiece) for event in events) >= len('city="SF")]')


def test_what_was_begun_as_a_call_and_is_none_comes_as_text_once_that_is_known() -> None:
    events = events_of('{"name": "get_weather", "parameters": nothing} at all')
    kinds = [type(event) for event in events if not isinstance(event, CallPiece)]
    assert kinds[:3] == [CallStarted, CallFailed, Text]
    assert summed(events) == ('{"name": "get_weather", "parameters": nothing} at all', [])


@pytest.mark.parametrize(
    ("text", "held"),
    [("Hello", ""), ("[1", ""), ("[g", "[g"), ("[get_x", ""), ('{"a', ""), ('{"na', '{"na'), ('{"name": "gx', ""), ("<b", ""),
     ("see <fun", "<fun"), ("a\n", "\n"), ("a\nc", ""), ("bra", "bra"), ("brag", ""), ("```j", "```j"), ("```p", "")],
)  # fmt: skip
def test_text_is_held_back_only_while_it_can_become_a_call(text: str, held: str) -> None:
    parser = ToolParser(tool_names=NAMES)
    shown = "".join(event.text for piece in text for event in parser.feed(piece) if isinstance(event, Text))
    assert shown + held == text


def test_arguments_deeper_than_messages_can_carry_are_no_call() -> None:
    for depth, is_call in ((20, True), (40, False)):
        text = f'{{"name": "get_weather", "parameters": {{"a": {"[" * depth}{"]" * depth}}}}}'
        assert bool(summed(events_of([text]))[1]) == is_call


def lines_run(text: str, **options: Any) -> int:
    """Lines of Python that reading a text, character by character, takes."""
    count = 0

    def step(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return step if "services" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(step)
    try:
        events_of(text, **options)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    ("head", "unit", "tail"),
    [
        ('{"name": "get_weather", "parameters": {"x": "', "abc \\n", '"}}'),
        ('<function=get_weather>{"x": "', "</f \\n", '"}</function>'),
        ('[get_weather(x="', "')] \\n", '")]'),
        ('[get_weather(x="', ")]", ""),
        ("", "[get_weather(x) ", ""),
        ("", '\n{"name": "', ""),
        ("", "<function=", ""),
    ],
)
def test_the_work_grows_as_the_text_does(head: str, unit: str, tail: str) -> None:
    short, long = (lines_run(head + unit * (size // len(unit)) + tail) for size in (1_000, 4_000))
    assert long < 4.4 * short


def test_an_argument_of_100_kb_is_read_one_character_at_a_time_with_bounded_work() -> None:
    size = 100_000
    for head, tail in (('{"name": "get_weather", "parameters": {"x": "', '"}}'), ('[get_weather(x="', '")]')):
        text = head + "x" * size + tail
        assert lines_run(text) < 60 * size
        assert summed(events_of(text)) == ("", [("get_weather", {"x": "x" * size})])


def test_a_random_answer_of_brackets_and_quotes_never_fails() -> None:
    source = random.Random(7)
    alphabet = ["[", "]", "{", "}", "(", ")", '"', "'", "\\", ",", ":", "=", "g", " ", "\n", "1", "<", ">", "`", "e", "-",
                "[g(", '{"name": "g", "parameters": ', "<function=g>", "</function>", "```"]  # fmt: skip
    for _ in range(3_000):
        text = "".join(source.choices(alphabet, k=source.randint(1, 30)))
        tag = source.random() < 0.3
        whole = summed(events_of([text], names=["g"], tag=tag))
        assert summed(events_of(text, names=["g"], tag=tag)) == whole
        assert whole[1] or whole[0] == text
