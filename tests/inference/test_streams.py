"""From tokens to text, from text to deltas, from text to tool calls: the same result however the tokens fall."""

import asyncio
import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from llamastack import v1
from services.inference.coalesce import WINDOW_TOKENS, Collector, DeltaBuffer
from services.inference.dialog import schema_of
from services.inference.text_stream import TextStream
from services.inference.tool_stream import ToolStream
from services.llama.tool_openings import decide, openings


class ByteTokenizer:
    """One token per byte: the hardest case for whole characters."""

    vocab_size = 256

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])

    def is_special(self, token_id: int) -> bool:
        return False


def stream_text(text: str, stop: tuple[str, ...]) -> tuple[list[str], bool]:
    stream: TextStream[int] = TextStream(ByteTokenizer(), stop=stop)  # type: ignore[arg-type]
    pieces = []
    for token in text.encode():
        piece = stream.push(token)
        pieces.append(piece.text)
        if piece.stopped:
            return pieces, True
    piece = stream.finish()
    return [*pieces, piece.text], piece.stopped


@given(st.text(), st.lists(st.text(min_size=1, max_size=4), max_size=3))
@settings(deadline=None)
def test_text_ends_before_the_stop_string_that_is_complete_first_and_never_breaks_a_character(
    text: str, stops: list[str]
) -> None:
    pieces, stopped = stream_text(text, tuple(stops))
    found = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    assert stopped == bool(found)
    assert "".join(pieces) == (text[: min(found)[1]] if found else text)
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(st.text(alphabet="ab", max_size=30), st.text(alphabet="ab", min_size=1, max_size=5))
@settings(deadline=None)
def test_stop_strings_of_repeating_letters_are_found_too(text: str, stop: str) -> None:
    pieces, stopped = stream_text(text, (stop,))
    assert "".join(pieces) == text.split(stop, maxsplit=1)[0]
    assert stopped == (stop in text)


def test_only_text_that_could_become_a_stop_string_is_held_back() -> None:
    pieces, _ = stream_text("one STARTED two", ("STOP",))
    assert pieces[:8] == ["o", "n", "e", " ", "", "", "STA", "R"]


def test_a_character_cut_at_the_end_becomes_the_replacement_character() -> None:
    stream: TextStream[int] = TextStream(ByteTokenizer())  # type: ignore[arg-type]
    assert stream.push("é".encode()[0]).text == ""
    assert stream.finish().text == "\ufffd"


def test_logprobs_travel_with_their_text_and_those_of_a_stop_string_are_dropped() -> None:
    stream: TextStream[int] = TextStream(ByteTokenizer(), stop=("cd",))  # type: ignore[arg-type]
    seen = []
    for number, token in enumerate(b"abcd"):
        piece = stream.push(token, number)
        seen += [(piece.text, piece.logprobs)]
    assert seen == [("a", [0]), ("b", [1]), ("", []), ("", [])]


async def read(buffer: DeltaBuffer) -> list[str]:
    texts = []
    while deltas := await buffer.next():
        texts += ["".join(delta.text) for delta in deltas]
    return texts


async def test_the_first_delta_is_sent_at_once_and_later_ones_in_eights() -> None:
    buffer = DeltaBuffer()
    for number in range(1 + 2 * WINDOW_TOKENS):
        buffer.text(f"{number} ", tokens=1)
    buffer.close()
    texts = await read(buffer)
    assert texts[0] == "0 "
    assert [len(text.split()) for text in texts[1:]] == [WINDOW_TOKENS, WINDOW_TOKENS]


async def test_a_slow_writer_is_flushed_by_the_window() -> None:
    buffer = DeltaBuffer()
    buffer.text("first", tokens=1)
    assert [delta.text for delta in await buffer.next()] == [["first"]]
    buffer.text("second", tokens=1)
    async with asyncio.timeout(5):
        assert [delta.text for delta in await buffer.next()] == [["second"]]


async def test_a_tool_call_comes_after_the_text_before_it_and_before_the_text_after_it() -> None:
    buffer = DeltaBuffer()
    buffer.text("a", tokens=1)
    buffer.text("b", tokens=1)
    buffer.tool_call(v1.ToolCall(tool_name="f"))
    buffer.text("c", tokens=1)
    buffer.close()
    kinds = []
    while deltas := await buffer.next():
        kinds += [delta.tool_call.tool_name if delta.tool_call else "".join(delta.text) for delta in deltas]
    assert kinds == ["a", "b", "f", "c"]


def run_tools(pieces: Iterable[str], *, complete: bool = True) -> tuple[str, list[str], bool]:
    said = Collector()
    names = ["get_weather", "now"]
    stream = ToolStream(said, tool_names=names)
    for piece in pieces:
        stream.text(piece, tokens=1)
    called = stream.finish(complete=complete)
    return "".join(said.texts), [f"{call.tool_name}{call.arguments_json}" for call in said.tool_calls], called


def test_a_schema_has_the_same_order_whatever_order_the_struct_gives() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "z": {}, "b": {}}, "required": ["z"]}
    backwards = {key: schema[key] for key in reversed(schema)}
    for shuffled in (schema, backwards):
        ordered = schema_of(ParseDict(shuffled, Struct()))
        assert json.dumps(ordered) == (
            '{"properties": {"z": {}, "a": {"type": "string"}, "b": {}}, "required": ["z"], "type": "object"}'
        )


CALLS = [
    '{"name": "get_weather", "parameters": {"city": "Oslo"}}',
    '<function=get_weather>{"city": "Oslo"}</function>',
    '[get_weather(city="Oslo")]',
    '  {"name": "get_weather", "arguments": {"city": "Oslo"}}',
]
PROSE = ["Hello there.", "[1] says so.", "{not json", "{}", "<b>bold</b>", '{"name": "unknown", "parameters": {}}', ""]


@pytest.mark.parametrize("text", CALLS + PROSE)
def test_any_split_of_an_answer_gives_the_same_text_and_calls(text: str) -> None:
    whole = run_tools([text])
    assert run_tools(text) == whole
    for cut in range(1, len(text)):
        assert run_tools([text[:cut], text[cut:]]) == whole
    if text in CALLS:
        assert whole[0].strip() == ""
        assert [json.loads(call.removeprefix("get_weather")) for call in whole[1]] == [{"city": "Oslo"}]
    else:
        assert whole == (text, [], False)


NAMES = ["get_weather", "now", "brave_search"]
NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
ARGUMENTS = st.dictionaries(st.sampled_from(["city", "größe", "n"]), VALUES, max_size=3)


def written(form: str, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """Calls as a model writes them, each form in its own way of putting several together."""
    if form == "python_list":
        said = (f"{name}({', '.join(f'{key}={value!r}' for key, value in args.items())})" for name, args in calls)
        return f"[{', '.join(said)}]"
    if form == "function_tag":
        return "\n".join(f"<function={name}>{json.dumps(args)}</function>" for name, args in calls)
    if form == "builtin":
        return f"brave_search.call(query={json.dumps(json.dumps(calls[0][1]))})"
    objects = [json.dumps({"name": name, "parameters": args}, ensure_ascii=form != "json") for name, args in calls]
    match form:
        case "json":
            return "; ".join(objects)
        case "list":
            return f"[{', '.join(objects)}]"
        case _:
            return "\n".join(f"<tool_call>{each}</tool_call>" for each in objects)


@given(
    form=st.sampled_from(["json", "list", "hermes", "function_tag", "python_list", "builtin"]),
    calls=st.lists(st.tuples(st.sampled_from(NAMES[:2]), ARGUMENTS), min_size=1, max_size=3),
    before=st.sampled_from(["", " ", "\n\n"]),
    cuts=st.lists(st.integers(0, 400), max_size=12),
    bytewise=st.booleans(),
)
@settings(deadline=None)
def test_calls_in_any_form_are_the_same_in_any_split_of_text_or_bytes(
    form: str, calls: list[tuple[str, dict[str, Any]]], before: str, cuts: list[int], bytewise: bool
) -> None:
    text = before + written(form, calls)
    if form == "builtin":
        calls = [("brave_search", {"query": json.dumps(calls[0][1])})]
    edges = [0, *sorted(cuts), len(text.encode())]
    if bytewise:
        decoder: TextStream[int] = TextStream(ByteTokenizer())  # type: ignore[arg-type]
        pieces = ["".join(decoder.push(token).text for token in text.encode()[a:b]) for a, b in pairwise(edges)]
        pieces.append(decoder.finish().text)
    else:
        pieces = [text[a:b] for a, b in pairwise(edges)]
    said = Collector()
    stream = ToolStream(said, tool_names=NAMES)
    for piece in pieces:
        stream.text(piece, tokens=1)
    assert stream.finish(complete=True)
    assert "".join(said.texts).strip() == ""
    assert [(call.tool_name, json.loads(call.arguments_json)) for call in said.tool_calls] == calls


def test_text_is_held_no_longer_than_it_can_become_a_call() -> None:
    known = openings(["now", "nowhere"], python_names=["now"], builtin_names=["brave_search"])
    cases = {
        "text": ["Hello", "[1] a", "<b>", '{"a', '{"name": "nobody', "```python", "[nowhere(", "now.call(", " " * 13],
        "open": ["", " ", "{", "[", "[no", "<func", "```", '{"name": "now', "brave_search.ca", '{"type": "function", '],
        "call": ['{"name":"now"', ' [{"name": "nowhere"', "<function=now>", "[now(", "brave_search.call("],
    }
    for decision, texts in cases.items():
        for text in texts:
            assert decide(text, known)[0] == decision, text


def test_a_call_cut_by_the_token_limit_is_text() -> None:
    text, calls, called = run_tools([CALLS[0][:30]], complete=False)
    assert (text, calls, called) == (CALLS[0][:30], [], False)


def test_text_before_a_call_is_shown_at_once_and_the_call_at_the_end() -> None:
    said = Collector()
    stream = ToolStream(said, tool_names=["now"])
    stream.text("Let me see. <function=now>{}", tokens=9)
    assert "".join(said.texts) == "Let me see. "
    stream.text("</function>\nDone.", tokens=5)
    assert "".join(said.texts) == "Let me see. "
    assert not said.tool_calls
    assert stream.finish(complete=True)
    assert "".join(said.texts) == "Let me see. \nDone."
    assert [call.tool_name for call in said.tool_calls] == ["now"]


def test_an_answer_that_is_cut_behind_a_whole_call_is_text_as_it_was_written() -> None:
    text = f"Look:\n{CALLS[0]}; {CALLS[0][:30]}"
    for pieces in ([text], list(text)):
        assert run_tools(pieces, complete=False) == (text, [], False)


def test_a_call_fits_its_message_whatever_is_in_its_arguments() -> None:
    deep = f"{'[' * 20}{']' * 20}"
    text = f'{{"name": "now", "parameters": {{"half": "\\ud83d", "deep": {deep}, "huge": {10**300}, "": null}}}}'
    _, [call], _ = run_tools([text])
    assert json.loads(call.removeprefix("now"))["half"] == "\ufffd"
    objects = '{"a": ' * 28 + "{}" + "}" * 28
    said = Collector()
    stream = ToolStream(said, tool_names=["now"])
    stream.text(f"<function=now>{objects}</function>", tokens=1)
    assert stream.finish(complete=True)
    assert v1.ToolCall.FromString(said.tool_calls[0].SerializeToString()) == said.tool_calls[0]
