"""One caller's bad request never costs another caller anything: found by breaking the running product."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from llamastack import v1
from services.inference.config import InferenceConfig
from services.runtime.config import ConfigError, RuntimeConfig, read_config
from stack_client.content import content, text_of
from stack_client.errors import InvalidArgumentError, StackError, from_rpc_error
from tests.inference.conftest import SCRIPTED, Node, running_node

SMOL = "smollm2-135m"


def chat(**sampling: Any) -> v1.ChatCompletionRequest:
    message = v1.Message(user=v1.UserMessage(content=content("Name a colour.")))
    params = v1.SamplingParams(**{"max_tokens": 4, **sampling})
    return v1.ChatCompletionRequest(model_id=SMOL, messages=[message], sampling_params=params)


def top_k(temperature: float) -> v1.SamplingStrategy:
    return v1.SamplingStrategy(top_k=v1.TopKSamplingStrategy(top_k=5, temperature=temperature))


@pytest.mark.parametrize(
    ("provider", "name", "metadata"),
    [
        ("scripted", "x", {"script": [{"match": 5}]}),
        ("scripted", "x", {"script": [{"reply": 5}]}),
        ("scripted", "x", {"script": [{"tool_calls": [{}]}]}),
        ("scripted", "x", {"script": "text"}),
        ("torch", "x" * 5000, {}),
    ],
)
async def test_a_bad_registration_fails_alone_and_the_service_lives_through_a_restart(
    tmp_path: Path, provider: str, name: str, metadata: dict[str, Any]
) -> None:
    for _ in range(2):
        async with running_node(tmp_path, [SCRIPTED]) as node:
            with pytest.raises(InvalidArgumentError, match="could not be loaded"):  # noqa: PT012 (it loads in between)
                await node.client.models.register(
                    "bad", provider_id=provider, provider_model_id=name, metadata=metadata
                )
                await node.client.models.wait_ready("bad")
            assert text_of((await node.client.inference.chat("scripted", "hi")).completion_message.content) == "hi"


@pytest.mark.parametrize("token", [49_152, 10**6, -1, 2**31 - 1])
async def test_a_bias_outside_the_vocabulary_is_refused(real: Node, token: int) -> None:
    pid = real.torch.engine.pid
    stub = v1.InferenceServiceStub(real.client.channel("inference"))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.ChatCompletion(chat(logit_bias={token: 5.0}))
    assert isinstance(from_rpc_error(failure.value), InvalidArgumentError)
    assert real.torch.engine.pid == pid


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-6])
async def test_a_tiny_temperature_is_greedy(real: Node, temperature: float) -> None:
    stub = v1.InferenceServiceStub(real.client.channel("inference"))
    tiny = await stub.ChatCompletion(chat(strategy=top_k(temperature)))
    assert tiny.completion_message == (await stub.ChatCompletion(chat())).completion_message


async def test_an_expression_that_nothing_matches_fails_its_request_only(real: Node) -> None:
    pid = real.torch.engine.pid
    impossible = v1.ResponseFormat(regex=r"[^\s\S]")
    neighbour = asyncio.ensure_future(real.client.inference.chat(SMOL, "Name a colour.", max_tokens=30))
    with pytest.raises(StackError):
        await real.client.inference.chat(SMOL, "x", response_format=impossible, max_tokens=5)
    assert (await neighbour).usage.completion_tokens > 0
    assert real.torch.engine.pid == pid
    assert real.torch.engine.in_flight == 0


async def test_a_damaged_embedding_folder_is_a_failed_model(real: Node, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InvalidArgumentError, match="could not be loaded"):  # noqa: PT012 (it loads in between)
        await real.client.models.register(
            "damaged", provider_id="torch", provider_model_id=str(tmp_path), model_type=v1.MODEL_TYPE_EMBEDDING
        )
        await real.client.models.wait_ready("damaged", timeout=20)
    await real.client.models.unregister("damaged")


async def test_special_tokens_are_detokenized_by_their_names_and_bad_ids_refused(real: Node) -> None:
    assert await real.client.inference.detokenize(SMOL, [1, 2]) == "<|im_start|><|im_end|>"
    for model, token in ((SMOL, -1), ("all-minilm-l6-v2", -1), ("all-minilm-l6-v2", 10**6)):
        with pytest.raises(InvalidArgumentError):
            await real.client.inference.detokenize(model, [token])


@pytest.mark.parametrize(
    ("cls", "settings", "named"),
    [
        (InferenceConfig, {"providers": {"torch": {"block_size": 0}}}, "providers.torch.block_size"),
        (InferenceConfig, {"providers": {"torch": {"waiting_requests": -1}}}, "providers.torch.waiting_requests"),
        (InferenceConfig, {"providers": {"torch": {"device": "tpu"}}}, "providers.torch.device"),
        (InferenceConfig, {"models": [{"model_id": "a"}, {"model_id": "a"}]}, "models"),
        (RuntimeConfig, {"ports": {"inference": 99_999}}, "ports.inference"),
    ],
)
def test_settings_that_nothing_could_run_with_are_refused_naming_the_key(
    cls: type, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"^stack.yaml: section.{named}: "):
        read_config(cls, settings, file="stack.yaml", at="section")
