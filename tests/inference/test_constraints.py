"""Constrained decoding: what is promised about an answer's form holds for every answer that was not cut short."""

import json
import random
import re
from typing import Any

import jsonschema
import pytest
from google.protobuf import json_format

from llamastack import v1
from services.inference.call_grammar import demanded_call
from services.inference.constraints import format_grammar
from services.inference.engine.engine import Engine
from services.inference.engine.request import EngineLimits, Request, Sampling
from services.inference.packaged import find_packaged
from services.llama import checkpoint
from services.llama.messages import ToolDefinition
from services.llama.tool_parser import parse_tool_calls
from stack_client.content import content, struct, text_of
from stack_client.errors import InvalidArgumentError, StackError, UnsupportedError
from tests.inference.conftest import Node

MODEL = "smollm2-135m"
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
}
TOOLS = [
    v1.ToolDefinition(tool_name="get_weather", description="Weather of a city", input_schema=struct(WEATHER)),
    v1.ToolDefinition(
        tool_name="now", description="The time", input_schema=struct({"type": "object", "properties": {}})
    ),
]


def json_schema(schema: dict[str, Any]) -> v1.ResponseFormat:
    return v1.ResponseFormat(json_schema=struct(schema))


def random_schema(source: random.Random, depth: int = 2) -> dict[str, Any]:  # noqa: PLR0911 (one per kind)
    """A nested schema whose every value is bounded, so that an answer ends."""
    kinds = ["string", "integer", "boolean", "enum"] + (["object", "array", "anyOf"] if depth else [])
    match source.choice(kinds):
        case "string":
            return {"type": "string", "maxLength": source.randint(1, 12)}
        case "integer":
            low = source.randint(-20, 20)
            return {"type": "integer", "minimum": low, "maximum": low + source.randint(0, 500)}
        case "boolean":
            return {"type": "boolean"}
        case "enum":
            return {"enum": source.sample(["red", "green", 'quo"te', "größe", 3, None, True], k=source.randint(1, 4))}
        case "array":
            return {"type": "array", "items": random_schema(source, depth - 1), "minItems": 1, "maxItems": 2}
        case "anyOf":
            return {"anyOf": [random_schema(source, depth - 1) for _ in range(2)]}
        case _:
            names = source.sample(["name", "age", "tags", "a b", "ünï"], k=source.randint(1, 3))
            return {
                "type": "object",
                "properties": {name: random_schema(source, depth - 1) for name in names},
                "required": names[: source.randint(0, len(names))],
                "additionalProperties": False,
            }


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine in this process: a tiny random model behind the real small model's vocabulary."""
    import dataclasses  # noqa: PLC0415

    from services.llama.config import PRESETS  # noqa: PLC0415
    from services.llama.model import Llama  # noqa: PLC0415
    from tests.inference.engines import torch_engine  # noqa: PLC0415

    folder = checkpoint.prepare(find_packaged(MODEL), cache_dir=tmp_path_factory.mktemp("cache"))
    tokenizer = checkpoint.load_text(folder).tokenizer
    config = dataclasses.replace(PRESETS["tiny"], vocab_size=tokenizer.vocab_size)
    return torch_engine(Llama.seeded(config, seed=3), limits=EngineLimits(cached_tokens=16384), tokenizer=tokenizer)


def generate(engine: Engine, grammars: list[str], *, max_tokens: int = 400) -> list[tuple[str, str | None]]:
    """Sample at temperature 1 under each grammar, all in one batch; returns texts and finish causes."""
    tokenizer = engine._tokenizer
    assert tokenizer is not None
    for number, grammar in enumerate(grammars):
        sampling = Sampling(temperature=1.0, seed=number)
        engine.add(
            Request(
                request_id=str(number), prompt_ids=(number + 5,), max_tokens=max_tokens, sampling=sampling,
                grammar=grammar, stop_ids=tokenizer.eos_ids,
            )
        )  # fmt: skip
    tokens: dict[str, list[int]] = {}
    causes: dict[str, str | None] = {}
    while not engine.idle:
        for emission in engine.step():
            tokens.setdefault(emission.request_id, []).append(emission.token_id)
            causes[emission.request_id] = emission.finish
    return [(tokenizer.decode(tokens[str(n)]), causes[str(n)]) for n in range(len(grammars))]


def test_two_hundred_random_schemas_give_only_valid_answers(engine: Engine) -> None:
    source = random.Random(7)
    schemas = [random_schema(source) for _ in range(200)]
    answers = generate(engine, [format_grammar(json_schema(schema)) for schema in schemas])
    finished = 0
    for schema, (text, cause) in zip(schemas, answers, strict=True):
        if cause == "stop":
            jsonschema.validate(json.loads(text), schema)
            finished += 1
    assert finished >= 190  # the rest were cut by the token limit and say so


@pytest.mark.parametrize("form", ["json", "function_tag", "python_list"])
@pytest.mark.parametrize("key", ["arguments", "parameters"])
def test_a_demanded_call_always_parses_and_obeys_its_schema(engine: Engine, form: Any, key: Any) -> None:
    source = random.Random(11)
    for _ in range(10):
        schema = {"type": "object", "properties": {"x": random_schema(source, 1)}, "required": ["x"]}
        tool = ToolDefinition(name="f", description="", parameters=schema)
        other = ToolDefinition(name="g", description="", parameters={"type": "object", "properties": {}})
        grammar = demanded_call([tool, other], choice="required", argument_key=key, tool_prompt_format=form)
        [(text, cause)] = generate(engine, [grammar])
        if cause != "stop":
            continue
        rest, calls = parse_tool_calls(text, tool_names=["f", "g"])
        assert rest.strip() == ""
        assert len(calls) == 1 or (calls and form == "python_list")
        for call in calls:
            jsonschema.validate(call.arguments(), (tool if call.tool_name == "f" else other).parameters)


def test_choice_regex_and_grammar_hold(engine: Engine) -> None:
    formats = [
        v1.ResponseFormat(choice=v1.ChoiceFormat(choices=["yes", "no", 'may"be'])),
        v1.ResponseFormat(regex=r"[A-Z]{3}-\d{4}"),
        v1.ResponseFormat(grammar=v1.Grammar(lark='start: "<" /[a-z]{1,5}/ ">"')),
    ]
    (choice, _), (pattern, _), (lark, _) = generate(engine, [format_grammar(each) for each in formats])
    assert choice in {"yes", "no", 'may"be'}
    assert re.fullmatch(r"[A-Z]{3}-\d{4}", pattern)
    assert re.fullmatch(r"<[a-z]{1,5}>", lark)


async def test_the_real_model_answers_in_the_form_asked_for_streamed_and_whole(real: Node) -> None:
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 30}, "country": {"const": "France"}},
        "required": ["capital", "country"],
        "additionalProperties": False,
    }
    question = "What is the capital of France?"
    options: dict[str, Any] = {"response_format": json_schema(schema), "max_tokens": 60}
    whole = await real.client.inference.chat(MODEL, question, **options)
    text = text_of(whole.completion_message.content)
    jsonschema.validate(json.loads(text), schema)
    assert whole.finish_reason == v1.FINISH_REASON_STOP
    pieces = [
        event.progress.delta.text async for event in real.client.inference.stream_chat(MODEL, question, **options)
    ]
    assert "".join(pieces) == text


@pytest.mark.parametrize("choice", ["required", "get_weather"])
async def test_the_real_model_calls_the_tool_that_is_demanded(real: Node, choice: str) -> None:
    config = v1.ToolConfig(tool_choice=choice)
    options: dict[str, Any] = {"tools": TOOLS, "tool_config": config, "max_tokens": 100}
    received = [event async for event in real.client.inference.stream_chat(MODEL, "Weather in Oslo?", **options)]
    complete = received[-1].complete
    assert complete.finish_reason == v1.FINISH_REASON_TOOL_CALLS
    [call] = complete.completion_message.tool_calls
    if choice != "required":
        assert call.tool_name == choice
    if call.tool_name == "get_weather":
        jsonschema.validate(json.loads(call.arguments_json), WEATHER)
        assert json_format.MessageToDict(call.arguments) == json.loads(call.arguments_json)


async def test_the_real_model_is_held_to_one_call_streamed_and_whole(real: Node) -> None:
    config = v1.ToolConfig(tool_choice="get_weather", parallel_tool_calls=False)
    options: dict[str, Any] = {"tools": TOOLS, "tool_config": config, "max_tokens": 100}
    whole = await real.client.inference.chat(MODEL, "Weather in Oslo?", **options)
    received = [event async for event in real.client.inference.stream_chat(MODEL, "Weather in Oslo?", **options)]
    [streamed] = received[-1].complete.completion_message.tool_calls
    [call] = whole.completion_message.tool_calls
    assert whole.finish_reason == received[-1].complete.finish_reason == v1.FINISH_REASON_TOOL_CALLS
    assert streamed.arguments_json == call.arguments_json


async def test_a_constrained_answer_cut_by_the_token_limit_says_length(real: Node) -> None:
    long = json_schema({"type": "array", "items": {"type": "string"}, "minItems": 50})
    answer = await real.client.inference.chat(MODEL, "List animals.", response_format=long, max_tokens=10)
    assert answer.finish_reason == v1.FINISH_REASON_LENGTH


@pytest.mark.parametrize("options", [{"max_tokens": 6}, {"max_tokens": 60, "stop": ["parameters", "arguments"]}])
async def test_half_a_call_is_reported_as_text(real: Node, options: dict[str, Any]) -> None:
    config = v1.ToolConfig(tool_choice="get_weather")
    answer = await real.client.inference.chat(MODEL, "Weather in Oslo?", tools=TOOLS, tool_config=config, **options)
    assert not answer.completion_message.tool_calls
    assert text_of(answer.completion_message.content).startswith("{")
    cut = "stop" not in options
    assert answer.finish_reason == (v1.FINISH_REASON_LENGTH if cut else v1.FINISH_REASON_STOP)


async def test_tools_that_are_offered_leave_a_text_answer_as_it_was_prompted_and_sampled(real: Node) -> None:
    """The same prompt with and without the mask: by ids, so that the tools' declaration is in both."""
    stub = v1.InferenceServiceStub(real.client.channel("inference"))
    said = v1.Message(user=v1.UserMessage(content=content("Tell me about the sea.")))
    dialog = v1.Dialog(messages=[said])
    prompt = await stub.Tokenize(v1.TokenizeRequest(model_id=MODEL, dialog=dialog, tools=TOOLS))
    strategy = v1.SamplingStrategy(top_p=v1.TopPSamplingStrategy(temperature=0.8, top_p=0.9))
    params = v1.SamplingParams(strategy=strategy, seed=3, max_tokens=30)
    plain = await stub.Completion(
        v1.CompletionRequest(model_id=MODEL, token_ids=prompt.token_ids, sampling_params=params)
    )
    offered = await stub.ChatCompletion(
        v1.ChatCompletionRequest(model_id=MODEL, messages=[said], tools=TOOLS, sampling_params=params)
    )
    assert text_of(offered.completion_message.content) == plain.content != ""


@pytest.mark.parametrize(
    ("wanted", "kind", "field"),
    [
        (v1.ResponseFormat(), InvalidArgumentError, "response_format"),
        (json_schema({"type": "object", "properties": {"a": {"items": {"type": "foo"}, "type": "array"}}}),
         InvalidArgumentError, "response_format.json_schema.properties.a.items"),
        (json_schema({"$ref": "#/nope"}), InvalidArgumentError, "response_format.json_schema"),
        (v1.ResponseFormat(regex="("), InvalidArgumentError, "response_format.regex"),
        (v1.ResponseFormat(choice=v1.ChoiceFormat()), InvalidArgumentError, "response_format.choice.choices"),
        (v1.ResponseFormat(choice=v1.ChoiceFormat(choices=["a", ""])),
         InvalidArgumentError, "response_format.choice.choices"),
        (v1.ResponseFormat(grammar=v1.Grammar(lark="start: (")), InvalidArgumentError, "response_format.grammar.lark"),
        (v1.ResponseFormat(grammar=v1.Grammar(bnf=struct({"a": 1}))), UnsupportedError, "response_format.grammar.bnf"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused_with_the_path_of_the_fault(
    wanted: v1.ResponseFormat, kind: type[StackError], field: str
) -> None:
    with pytest.raises(kind) as failure:
        format_grammar(wanted)
    assert failure.value.field == field


def test_a_tool_whose_schema_cannot_be_compiled_is_named() -> None:
    good = ToolDefinition(name="good", description="", parameters={"type": "object", "properties": {}})
    bad = ToolDefinition(name="bad", description="", parameters={"properties": {"x": {"type": "foo"}}})
    with pytest.raises(InvalidArgumentError) as failure:
        demanded_call([good, bad], choice="required", argument_key="arguments", tool_prompt_format="json")
    assert failure.value.field == "tools[1].input_schema.properties.x"
