"""The table of formats: what it writes is read back, over the answers of BFCL, in any split."""

import importlib.util
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest

from services.llama.messages import ToolCall, ToolDefinition, ToolPromptFormat
from services.llama.tokenizer import TiktokenTokenizer
from services.llama.tool_events import CallComplete, Event, Text
from services.llama.tool_formats import TOOL_FAMILIES, TOOL_FORMATS, calls_text, user_prompt
from services.llama.tool_parser import ToolParser

Calls = list[tuple[str, dict[str, Any]]]
MOST_WAYS = 10_000
FORMATS: tuple[ToolPromptFormat, ...] = get_args(ToolPromptFormat)


@pytest.fixture(scope="session")
def answers() -> list[Calls]:
    """Every entry's calls, each parameter with the first value that BFCL accepts."""
    spec = importlib.util.find_spec("bfcl_eval")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps bfcl-eval==2026.3.23")
    folder = Path(spec.origin).parent / "data" / "possible_answer"
    return [calls for file in sorted(folder.glob("*.json")) for calls in _calls_in(file)]


def _calls_in(file: Path) -> Iterator[Calls]:
    for line in file.read_text(encoding="utf-8").splitlines():
        truth = json.loads(line)["ground_truth"]
        if truth and isinstance(truth[0], dict):  # some categories have no calls
            yield [
                (name, {key: values[0] for key, values in arguments.items() if values[:1] not in ([], [""])})
                for call in truth
                for name, arguments in call.items()
            ]


def _read(pieces: Sequence[str], names: Sequence[str], *, tag: bool = False) -> tuple[str, Calls]:
    parser = ToolParser(tool_names=names)
    events: list[Event] = parser.python_tag() if tag else []
    for piece in pieces:
        events += parser.feed(piece)
    events += parser.finish("stop")
    said = "".join(event.text for event in events if isinstance(event, Text))
    return said, [(event.call.tool_name, event.call.arguments()) for event in events if isinstance(event, CallComplete)]


def _written(calls: Calls, form: ToolPromptFormat) -> str:
    made = [ToolCall(call_id="", tool_name=name, arguments_json=json.dumps(arguments)) for name, arguments in calls]
    return calls_text(made, tools=(), tool_prompt_format=form)


def _cut(text: str, cuts: Sequence[int]) -> list[str]:
    return [text[a:b] for a, b in pairwise([0, *sorted(cuts), len(text)])]


@pytest.mark.parametrize("form", FORMATS)
def test_every_answer_of_bfcl_is_written_and_read_back_however_it_is_split(
    form: ToolPromptFormat, answers: list[Calls]
) -> None:
    assert len(answers) > 2_400
    source = random.Random(form)
    for number, calls in enumerate(answers):
        names, text = [name for name, _ in calls], _written(calls, form)
        splits = [[text], _cut(text, source.choices(range(len(text)), k=source.randint(1, 3)))]
        if number % 10 == 0:
            splits += [list(text), _cut(text, source.choices(range(len(text)), k=source.randint(4, 20)))]
        if number % 100 == 0:
            splits += [_cut(text, [cut]) for cut in range(1, len(text))]
        for pieces in splits:
            assert _read(pieces, names, tag=TOOL_FORMATS[form].tagged) == ("", calls), pieces


@pytest.mark.parametrize("form", FORMATS)
def test_the_shortest_answer_of_bfcl_is_read_in_every_way_to_cut_it_up_to_three_times(
    form: ToolPromptFormat, answers: list[Calls]
) -> None:
    calls = min(answers, key=lambda calls: len(_written(calls, form)))
    text, source = _written(calls, form), random.Random(form)
    for count in (1, 2, 3):
        ways = list(itertools.combinations(range(1, len(text)), count))
        if len(ways) > MOST_WAYS:  # JSON's text is long; `test_tool_parser` has shorter ones
            ways = source.sample(ways, MOST_WAYS)
        for cuts in ways:
            assert _read(_cut(text, cuts), [calls[0][0]]) == ("", calls), cuts


def test_queries_of_bfcl_survive_the_built_in_form(answers: list[Calls]) -> None:
    queries = {value for calls in answers for _, arguments in calls for value in arguments.values()
               if isinstance(value, str) and "\n" not in value and "\\" not in value}  # fmt: skip
    assert len(queries) > 500
    for query in queries:
        text = _written([("brave_search", {"query": query})], "json")
        for pieces in ([text], list(text)):
            assert _read(pieces, ["brave_search"], tag=True) == ("", [("brave_search", {"query": query})])


@pytest.mark.parametrize("form", FORMATS)
def test_only_python_lists_hold_several_calls_but_several_are_read_in_every_form(form: ToolPromptFormat) -> None:
    calls: Calls = [("f", {"a": 1}), ("g.h", {}), ("f", {"from": "x", "class": [None, True]})]
    assert TOOL_FORMATS[form].several == (form == "python_list")
    assert _read([_written(calls, form)], ["f", "g.h"]) == ("", calls)


def test_every_family_has_a_form_of_its_own_and_llama_s_have_tokens(llama3_tokenizer: TiktokenTokenizer) -> None:
    own = {name: family.formats[0] for name, family in TOOL_FAMILIES.items()}
    assert own == {"3.1": "json", "3.2": "python_list", "3.3": "python_list", "4": "python_list", "other": "json"}
    for name in ("3.1", "3.2", "3.3"):
        family = TOOL_FAMILIES[name]
        for token in (family.python_tag, family.end_of_message, family.end_of_turn):
            assert token in llama3_tokenizer.special_tokens
    assert TOOL_FAMILIES["4"].python_tag not in llama3_tokenizer.special_tokens


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_declares_tools_by_name_in_one_message(form: ToolPromptFormat) -> None:
    tool = ToolDefinition(name="get_weather", description="Weather", parameters={"type": "object", "properties": {}})
    assert "get_weather" in TOOL_FORMATS[form].prompt([tool])
    assert bool(user_prompt([tool], tool_prompt_format=form)) == (TOOL_FORMATS[form].declared_in == "user")
