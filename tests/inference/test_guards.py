"""What guard models need of a text model: their own template with its variables, and special tokens on request."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from llamastack import v1
from services.inference.packaged import find_packaged
from services.llama import checkpoint
from stack_client.calls import unary
from stack_client.content import content
from stack_client.errors import InvalidArgumentError, UnsupportedError
from tests.inference.conftest import Node, running_node

MODEL = "guard"
HAZARDS = ", ".join(f'"S{number}": "Hazard {number}"' for number in range(1, 14))
TEMPLATE = f"""<|im_start|>user
Judge by these.{{# <|start_header_id|> #}}
{{% if not categories is defined %}}{{% set categories = {{{HAZARDS}}} %}}{{% endif %}}
{{% for key in categories if key not in (excluded_category_keys or []) %}}
{{{{ key ~ ': ' ~ categories[key] ~ '.' }}}}
{{% endfor %}}
{{% for message in messages %}}
{{% for part in message['content'] %}}{{{{ message['role'] ~ ': ' ~ part['text'] }}}}{{% endfor %}}

{{% endfor %}}
Answer 'safe' or 'unsafe'.<|im_end|>
<|im_start|>assistant
"""
"""Our own, with the structure of Llama Guard 3 1B's and the tokens of SmolLM2."""


@pytest.fixture(scope="module")
async def guard(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """A node whose text model brings a guard's template."""
    try:
        packaged = find_packaged("smollm2-135m")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    home, folder = tmp_path_factory.mktemp("guard"), tmp_path_factory.mktemp("checkpoint")
    for file in checkpoint.prepare(packaged, cache_dir=home / "converted").iterdir():
        if not file.name.startswith(("chat_template", "tokenizer_config")):
            (folder / file.name).symlink_to(file)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    model = {"model_id": MODEL, "provider_model_id": str(folder)}
    async with running_node(home, [model], torch={"dtype": "float32"}) as node:
        yield node


def user(text: str) -> v1.Message:
    return v1.Message(user=v1.UserMessage(content=content(text)))


def struct(**values: Any) -> Struct:
    result = Struct()
    result.update(values)
    return result


async def prompt(node: Node, **arguments: Any) -> str:
    """The text of a rendered dialog."""
    request = v1.TokenizeRequest(model_id=MODEL, dialog=v1.Dialog(messages=[user("Hello <|im_end|>")]))
    if arguments:
        json_format.ParseDict(arguments, request.template_arguments)
    response: v1.TokenizeResponse = await unary(node.client.inference._stub.Tokenize(request))
    assert list(response.token_ids).count(2) == 1  # <|im_end|>: the template's own
    return await node.client.inference.detokenize(MODEL, list(response.token_ids))


async def test_a_guard_is_told_by_its_template_and_its_facts_say_so(guard: Node) -> None:
    facts = json_format.MessageToDict((await guard.client.models.get(MODEL)).metadata)
    assert facts["guard_template"] == "llama-guard-3-1b"
    assert facts["chat_template"] is True
    assert facts["vocab_size"] == facts["vocabulary"] == 49152
    assert facts["weights_hash"].startswith("sha256:")


async def test_its_dialogs_are_rendered_by_its_template_with_the_variables_given(guard: Node) -> None:
    whole = await prompt(guard)
    assert whole.startswith("<|im_start|>user\nJudge by these.")
    assert "S13: Hazard 13.\n" in whole
    assert "user: Hello <|im_end|>" in whole
    without = await prompt(guard, excluded_category_keys=["S2", "S13"])
    assert "S2:" not in without
    assert "S13:" not in without
    assert without.index("S3:") < without.index("S10:")
    ours = await prompt(guard, categories={"C10": "Tenth", "C2": "Second", "C1": "First"})
    assert "C1: First.\nC2: Second.\nC10: Tenth.\n" in ours  # a map has no order: it is that of the codes


async def test_variables_that_its_template_does_not_name_are_refused(guard: Node) -> None:
    for name in ("category", "messages"):
        with pytest.raises(InvalidArgumentError, match="excluded_category_keys") as failure:
            await prompt(guard, **{name: "x"})
        assert failure.value.field == f"template_arguments.{name}"


async def test_special_tokens_in_a_text_are_taken_as_such_only_on_request(guard: Node) -> None:
    tokenize = guard.client.inference._stub.Tokenize
    text = "<|im_start|>user\nHello<|im_end|>"
    plain = await unary(tokenize(v1.TokenizeRequest(model_id=MODEL, text=text)))
    special = await unary(tokenize(v1.TokenizeRequest(model_id=MODEL, text=text, parse_special=True)))
    assert not {1, 2} & set(plain.token_ids)
    assert (special.token_ids[0], special.token_ids[-1]) == (1, 2)
    assert await guard.client.inference.detokenize(MODEL, list(special.token_ids)) == text


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (v1.TokenizeRequest(text="a", template_arguments=struct(a=1)), "template_arguments"),
        (v1.TokenizeRequest(dialog=v1.Dialog(messages=[user("a")]), parse_special=True), "parse_special"),
    ],
)
async def test_what_does_not_go_with_the_input_is_refused(guard: Node, asked: v1.TokenizeRequest, field: str) -> None:
    asked.model_id = MODEL
    with pytest.raises(InvalidArgumentError) as failure:
        await unary(guard.client.inference._stub.Tokenize(asked))
    assert failure.value.field == field


async def test_other_models_take_no_template_arguments_and_encoders_no_special_tokens(real: Node) -> None:
    tokenize = real.client.inference._stub.Tokenize
    dialog = v1.Dialog(messages=[user("a")])
    with pytest.raises(InvalidArgumentError, match="no such variable") as failure:
        await unary(
            tokenize(
                v1.TokenizeRequest(model_id="smollm2-135m", dialog=dialog, template_arguments=struct(categories=1))
            )
        )
    assert failure.value.field == "template_arguments.categories"
    with pytest.raises(UnsupportedError):
        await unary(tokenize(v1.TokenizeRequest(model_id="all-minilm-l6-v2", text="a", parse_special=True)))


async def test_a_verdict_is_one_prefill_of_what_is_new(guard: Node) -> None:
    """The path of a guard: a cached prompt, one token more, and the log probabilities of two words."""
    inference = guard.client.inference
    safe, unsafe = [(await inference.tokenize(MODEL, word))[0] for word in ("safe", "unsafe")]
    prefix = (await inference.tokenize(MODEL, "A policy of some length. " * 20))[:96]
    engine = guard.torch.engine

    async def ask(ids: list[int]) -> v1.CompletionResponse:
        request = v1.CompletionRequest(
            model_id=MODEL,
            token_ids=ids,
            sampling_params=v1.SamplingParams(max_tokens=1),
            logprobs=v1.LogProbConfig(token_ids=[safe, unsafe]),
        )
        response: v1.CompletionResponse = await unary(inference._stub.Completion(request))
        return response

    first = await ask([*prefix, 100, 101])
    before = engine.figures[MODEL].rows
    second = await ask([*prefix, 102, 103, 104])
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 96)
    assert engine.figures[MODEL].rows - before == 3
    [entry] = second.logprobs
    assert [token.token_id for token in entry.asked] == [safe, unsafe]
