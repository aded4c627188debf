"""Answers that may be tool calls: whatever the model draws, a call is whole and valid, and text is left alone."""

import json
import random
from collections.abc import Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from llguidance import LLMatcher, LLTokenizer

from services.inference.call_grammar import demanded_call, offered_calls
from services.inference.coalesce import Collector
from services.inference.constraints import format_grammar
from services.inference.engine.grammar import Constraint, Grammars
from services.inference.packaged import find_packaged
from services.inference.tool_stream import ToolStream
from services.llama import checkpoint
from services.llama.messages import ToolCall, ToolDefinition
from services.llama.tokenizer import Tokenizer
from services.llama.tool_formats import calls_text
from stack_client.errors import InvalidArgumentError, UnsupportedError
from tests.inference.test_constraints import json_schema, random_schema

QUERY = {"type": "object", "properties": {"query": {"type": "string", "maxLength": 20}}, "required": ["query"]}
CODE = {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}
MOST_TOKENS = 600
ANSWERS = 6
OPENINGS = [
    '{"name": "f"', '{"type": "function", "name": "f"', '{"type":"function","function":{"name":"f"', '[{"name": "f"',
    '<tool_call>{"name": "f"', '<tool_call>\n[{"name": "f"', '```json\n{"name": "f"', '```\n{"name": "f"',
    "<function=f>", "[f(", "[ f(", "brave_search.call(", '\n\n{ "name" : "f"',
]  # fmt: skip


class Vocabulary:
    """A model's vocabulary and what constrains it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.grammars = Grammars(tokenizer, vocab_size=tokenizer.vocab_size)
        self.python_tag = tokenizer.special_tokens.get("<|python_tag|>")
        self.zeros_V = torch.zeros(tokenizer.vocab_size)

    def allowed(self, constraint: Constraint) -> "np.ndarray[Any, np.dtype[np.int64]]":
        return np.flatnonzero(np.isfinite(constraint.apply(self.zeros_V).numpy()))

    def draw(self, constraint: Constraint, begun: Sequence[int], source: random.Random) -> tuple[list[int], bool]:
        """Token ids that begin as given and go on at random; and whether the answer ended by itself."""
        ids: list[int] = []
        for forced in begun:
            assert forced in self.allowed(constraint), self.tokenizer.decode([*ids, forced])
            constraint.accept(forced)
            ids.append(forced)
        while len(ids) < MOST_TOKENS:
            if constraint.finished:
                return ids, True
            allowed = self.allowed(constraint)
            ends = np.intersect1d(allowed, list(self.tokenizer.eos_ids))
            pool = ends if len(ends) and source.random() < 0.5 else allowed
            chosen = int(pool[source.randrange(len(pool))])
            if chosen in self.tokenizer.eos_ids:
                return ids, True
            constraint.accept(chosen)
            ids.append(chosen)
        return ids, False

    def text(self, ids: Sequence[int]) -> str:
        return b"".join(self.tokenizer.token_bytes(token) for token in ids if token != self.python_tag).decode(
            errors="replace"
        )


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = checkpoint.prepare(find_packaged("smollm2-135m"), cache_dir=tmp_path_factory.mktemp("cache"))
    return Vocabulary(checkpoint.load_text(folder).tokenizer)


@pytest.fixture(scope="module")
def llama3() -> Vocabulary:
    from pathlib import Path  # noqa: PLC0415

    from services.llama.tokenizer import TiktokenTokenizer  # noqa: PLC0415

    package = pytest.importorskip("llama_models")
    return Vocabulary(TiktokenTokenizer(Path(package.__file__).parent / "llama3" / "tokenizer.model"))


def tool(name: str, schema: dict[str, Any]) -> ToolDefinition:
    return ToolDefinition(name=name, description="", parameters=schema)


def random_tools(source: random.Random) -> list[ToolDefinition]:
    names = source.sample(["city", "days", "größe", "kind"], k=source.randint(0, 3))
    properties = {name: random_schema(source, 1) for name in names}
    schema = {"type": "object", "properties": properties, "required": names[: source.randint(0, len(names))]}
    return [tool("f", schema), tool("fo", {"type": "object", "properties": {}}), tool("brave_search", QUERY)]


def read(
    tools: Sequence[ToolDefinition], pieces: Sequence[str], *, tagged: bool, complete: bool = True
) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    said = Collector()
    stream = ToolStream(said, tool_names=[t.name for t in tools])
    if tagged:
        stream.python_tag()
    for piece in pieces:
        stream.text(piece, tokens=1)
    stream.finish(complete=complete)
    return "".join(said.texts), [(call.tool_name, json.loads(call.arguments_json)) for call in said.tool_calls]


def check_calls(tools: Sequence[ToolDefinition], calls: Sequence[tuple[str, dict[str, Any]]]) -> None:
    schemas = {tool.name: {"additionalProperties": False, **tool.parameters} for tool in tools}
    for name, arguments in calls:
        jsonschema.validate(arguments, schemas[name])


def split(text: str, source: random.Random) -> list[str]:
    cuts = sorted(source.randint(0, len(text)) for _ in range(source.randint(0, 8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("family", ["smollm2", "llama3"])
def test_a_call_that_was_begun_freely_is_whole_valid_and_the_same_in_any_split(
    family: str, opening: str, request: pytest.FixtureRequest
) -> None:
    words: Vocabulary = request.getfixturevalue(family)
    source = random.Random(opening)
    finished = 0
    for number in range(ANSWERS):
        tools = random_tools(source)
        offered = offered_calls(tools, python_tag=words.python_tag)
        tag = [words.python_tag] if words.python_tag is not None and number % 2 else []
        begun = [*tag, *words.tokenizer.encode(opening)]
        ids, ended = words.draw(words.grammars.constraint("", offered), begun, source)
        text = words.text(ids)
        if not ended:
            assert read(tools, [text], tagged=bool(tag), complete=False) == (text, [])
            continue
        finished += 1
        rest, calls = read(tools, [text], tagged=bool(tag))
        assert rest.strip() == ""
        assert calls
        check_calls(tools, calls)
        for _ in range(3):
            assert read(tools, split(text, source), tagged=bool(tag)) == (rest, calls)
    assert finished >= ANSWERS - 2


@pytest.mark.parametrize(
    "text",
    ["Hello there.", '{"name": "Ada", "born": 1815}', '{"a": 1}', "[1] says so", "{", "", "```python\nprint(1)\n```",
     '[{"name": "Ada"}]', "<b>bold</b>", "Let me see: [f(a=1)]", "f(x)", "brave_search",
     '{"type": "function", "x": 1}'],
)  # fmt: skip
def test_text_that_is_no_call_passes_whatever_it_looks_like_and_is_not_masked_once_that_is_known(
    smollm2: Vocabulary, text: str
) -> None:
    tools = random_tools(random.Random(1))
    offered = offered_calls(tools)
    constraint = smollm2.grammars.constraint("", offered)
    for token in smollm2.tokenizer.encode(text):
        assert token in smollm2.allowed(constraint)
        constraint.accept(token)
    assert set(smollm2.tokenizer.eos_ids) <= set(smollm2.allowed(constraint))
    assert read(tools, list(text), tagged=False) == (text, [])
    if len(text) > 1 and text != "brave_search":
        assert constraint.apply(smollm2.zeros_V) is smollm2.zeros_V


def test_a_free_answer_loses_no_ordinary_first_token(smollm2: Vocabulary) -> None:
    offered = offered_calls(random_tools(random.Random(1)))
    allowed = set(smollm2.allowed(smollm2.grammars.constraint("", offered)))
    for token in range(smollm2.tokenizer.vocab_size):
        raw = smollm2.tokenizer.token_bytes(token)
        whole = raw.decode(errors="ignore").encode() == raw and not smollm2.tokenizer.is_special(token)
        assert not whole or token in allowed, raw
    assert smollm2.tokenizer.eos_ids <= allowed


def test_an_opening_is_followed_however_its_letters_fall_into_tokens(smollm2: Vocabulary) -> None:
    offered = offered_calls([tool("f", QUERY), tool("brave_search", QUERY)])
    for opening in OPENINGS:
        constraint = smollm2.grammars.constraint("", offered)
        for letter in opening:
            [token] = smollm2.tokenizer.encode(letter)
            assert token in smollm2.allowed(constraint), opening
            constraint.accept(token)
        allowed = {smollm2.text([token]) for token in smollm2.allowed(constraint)}
        assert "Hello" not in allowed


def test_a_token_that_would_break_a_call_is_not_allowed(smollm2: Vocabulary) -> None:
    offered = offered_calls([tool("f", QUERY)])
    constraint = smollm2.grammars.constraint("", offered)
    for token in smollm2.tokenizer.encode('{"name": "f", "parameters": {"query'):
        constraint.accept(token)
    [after] = {smollm2.text([token])[:1] for token in smollm2.allowed(constraint)}
    assert after == '"'


@pytest.mark.parametrize("form", ["json", "function_tag", "python_list"])
def test_a_demanded_call_of_the_llama_3_family_may_open_with_its_tag(llama3: Vocabulary, form: Any) -> None:
    source = random.Random(5)
    for _ in range(10):
        tools = random_tools(source)
        grammar = demanded_call(
            tools, choice="required", argument_key="parameters", tool_prompt_format=form, python_tag=llama3.python_tag
        )
        constraint = llama3.grammars.constraint(grammar, None)
        tagged = form != "function_tag"
        assert (llama3.python_tag in llama3.allowed(constraint)) == tagged
        ids, ended = llama3.draw(constraint, [llama3.python_tag] if tagged and llama3.python_tag else [], source)
        if ended:
            rest, calls = read(tools, [llama3.text(ids)], tagged=tagged)
            assert (rest, len(calls)) == ("", 1) or (form == "python_list" and rest == "" and calls)
            check_calls(tools, calls)


def test_after_the_python_tag_there_is_a_call_or_code_for_the_interpreter(llama3: Vocabulary) -> None:
    assert llama3.python_tag is not None
    tag, code = [llama3.python_tag], "for n in range(3):\n    print([n, {'a': n}])"
    with_code = [tool("code_interpreter", CODE), tool("f", QUERY)]
    offered = offered_calls(with_code, python_tag=llama3.python_tag)
    constraint = llama3.grammars.constraint("", offered)
    for token in [*tag, *llama3.tokenizer.encode(code)]:
        assert token in llama3.allowed(constraint)
        constraint.accept(token)
    assert read(with_code, [code], tagged=True) == ("", [("code_interpreter", {"code": code})])
    without = llama3.grammars.constraint("", offered_calls(with_code[1:], python_tag=llama3.python_tag))
    without.accept(llama3.python_tag)
    assert llama3.tokenizer.encode("for")[0] not in llama3.allowed(without)


def test_with_a_response_format_the_answer_is_a_call_or_has_that_form(smollm2: Vocabulary) -> None:
    offered = offered_calls([tool("f", QUERY)])
    wanted = {"type": "object", "properties": {"name": {"enum": ["f", "Ada"]}}, "required": ["name"]}
    grammar = format_grammar(json_schema({**wanted, "additionalProperties": False}))
    source = random.Random(3)

    def drawn(begun: str) -> str:
        place = smollm2.grammars.constraint(grammar, offered)
        ids, ended = smollm2.draw(place, smollm2.tokenizer.encode(begun), source)
        assert ended
        return smollm2.text(ids)

    assert json.loads(drawn('{"name": "A')) == {"name": "Ada"}
    for opening in ('{"name": "f', "[f(", "<function"):
        _, [call, *_] = read([tool("f", QUERY)], [drawn(opening)], tagged=False)
        check_calls([tool("f", QUERY)], [call])
    assert smollm2.tokenizer.encode("Hello")[0] not in smollm2.allowed(smollm2.grammars.constraint(grammar, offered))


@pytest.mark.parametrize("form", ["json", "function_tag", "python_list"])
def test_schemas_with_definitions_can_be_called_in_every_form(smollm2: Vocabulary, form: Any) -> None:
    digit = {"type": "integer", "minimum": 0, "maximum": 9}
    point = {"type": "object", "properties": {"x": digit}, "required": ["x"], "additionalProperties": False}
    more = {"type": "array", "items": {"$ref": "#/$defs/Point"}, "maxItems": 2}
    schema = {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/Point"}, "more": more},
        "required": ["at"],
        "$defs": {"Point": point},
    }
    tools = [tool("go", schema)]
    grammar = demanded_call(tools, choice="go", argument_key="arguments", tool_prompt_format=form)
    ids, ended = smollm2.draw(smollm2.grammars.constraint(grammar, None), [], random.Random(2))
    assert ended
    rest, calls = read(tools, [smollm2.text(ids)], tagged=False)
    assert rest == ""
    check_calls(tools, calls)


def test_python_words_stand_for_jsons_in_python_calls(smollm2: Vocabulary) -> None:
    schema = {
        "type": "object",
        "properties": {"on": {"type": "boolean"}, "to": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        "required": ["on"],
    }
    tools = [tool("switch", schema)]
    offered = offered_calls(tools)
    for text in ("[switch(on=True, to=None)]", '[switch(on=false, to="x")]', "[switch(on=True), switch(on=False)]"):
        constraint = smollm2.grammars.constraint("", offered)
        for token in smollm2.tokenizer.encode(text):
            assert token in smollm2.allowed(constraint), text
            constraint.accept(token)
        check_calls(tools, read(tools, [text], tagged=False)[1])


def test_what_is_written_in_a_calls_strings_is_never_a_call_itself() -> None:
    tools = [tool("f", QUERY), tool("fo", {"type": "object", "properties": {}})]
    inner = ("<function=fo>{}</function>", "[fo()]", '{"name": "fo", "parameters": {}}', 'f.call(query="x")')
    for text in inner:
        argument = json.dumps(text)
        for call in (
            f'{{"name": "f", "parameters": {{"query": {argument}}}}}',
            f'<function=f>{{"query": {argument}}}</function>',
            f"[f(query={argument})]",
        ):
            assert read(tools, [call], tagged=False) == ("", [("f", {"query": text})])


def test_a_tool_that_python_cannot_name_is_refused_in_that_form_and_offered_in_others() -> None:
    for name, schema in (
        ("get-weather", QUERY),
        ("f", {"type": "object", "properties": {"a b": {}}}),
        ("f", {"anyOf": [QUERY]}),
    ):
        tools = [tool("g", QUERY), tool(name, schema)]
        with pytest.raises(UnsupportedError) as failure:
            demanded_call(tools, choice="required", argument_key="parameters", tool_prompt_format="python_list")
        assert failure.value.field == "tools[1]"
        assert demanded_call(tools, choice="g", argument_key="parameters", tool_prompt_format="python_list")
        assert offered_calls(tools).calls


def test_a_tool_that_is_only_offered_is_refused_too_when_its_schema_cannot_be_compiled() -> None:
    with pytest.raises(InvalidArgumentError) as failure:
        offered_calls([tool("good", QUERY), tool("bad", {"properties": {"x": {"type": "foo"}}})])
    assert failure.value.field == "tools[1].input_schema.properties.x"


@pytest.mark.parametrize("form", ["json", "function_tag", "python_list"])
def test_what_is_written_into_the_history_is_what_the_grammar_takes_and_the_parser_reads(
    smollm2: Vocabulary, form: Any
) -> None:
    tools = [tool("f.g", QUERY), tool("fo", {"type": "object", "properties": {}})]
    for name, arguments in (("f.g", {"query": "ä \"b\"\n'c' \\ ]})"}), ("fo", {})):
        call = ToolCall(call_id="", tool_name=name, arguments_json=json.dumps(arguments))
        text = calls_text([call], tools=(), tool_prompt_format=form)
        demanded = demanded_call(tools, choice="required", argument_key="parameters", tool_prompt_format=form)
        for constraint in (
            smollm2.grammars.constraint(demanded, None),
            smollm2.grammars.constraint("", offered_calls(tools)),
        ):
            for token in smollm2.tokenizer.encode(text):
                assert token in smollm2.allowed(constraint), text
                constraint.accept(token)
        assert read(tools, [text], tagged=False) == ("", [(name, arguments)])


@pytest.mark.parametrize("opening", OPENINGS)
def test_an_answer_that_may_have_one_call_only_has_one_in_every_form(smollm2: Vocabulary, opening: str) -> None:
    source = random.Random(opening)
    tools = random_tools(source)
    offered = offered_calls(tools, several=False)
    for _ in range(ANSWERS):
        begun = smollm2.tokenizer.encode(opening)
        ids, ended = smollm2.draw(smollm2.grammars.constraint("", offered), begun, source)
        if ended:
            rest, calls = read(tools, [smollm2.text(ids)], tagged=False)
            assert (rest.strip(), len(calls)) == ("", 1)


def test_a_demanded_python_list_has_one_call_where_only_one_may_be() -> None:
    tools = [tool("f", QUERY), tool("g", QUERY)]
    several = demanded_call(tools, choice="required", argument_key="parameters", tool_prompt_format="python_list")
    one = demanded_call(
        tools, choice="required", argument_key="parameters", tool_prompt_format="python_list", several=False
    )
    text = '[f(query="a"), g(query="b")]'
    assert _matches(several, text)
    assert not _matches(one, text)
    assert _matches(one, '[f(query="a")]')


def _matches(grammar: str, text: str) -> bool:
    matcher = LLMatcher(LLTokenizer("byte"), grammar)
    return bool(matcher.consume_tokens(list(text.encode()))) and bool(matcher.is_accepting())


@pytest.mark.parametrize("behind", ["", "Let me see.\n"])
def test_an_answer_that_may_have_one_call_ends_with_its_first_and_says_so(behind: str) -> None:
    said, stops = Collector(), []
    stream = ToolStream(said, tool_names=["f"], several=False)
    stream.on_enough = lambda: stops.append(True)
    call = '{"name": "f", "parameters": {"a": 1}}'
    for letter in f"{behind}{call}; {call} and more":
        stream.text(letter, tokens=1)
    assert stream.finish(complete=True)
    assert ("".join(said.texts).strip(), len(said.tool_calls), stops) == (behind.strip(), 1, [True])
