"""Adapters as models: registered as `base@name`, listed, answering, kept, brought back, unregistered."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from google.protobuf import json_format

from llamastack import v1
from services.inference.engine.request import EngineLimits, Request, Sampling
from services.llama.checkpoint import load_config, load_model, load_text
from services.llama.lora import LoraAdapter, save_adapter
from stack_client.content import text_of
from stack_client.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    StackError,
    UnavailableError,
    UnsupportedError,
)
from tests.inference.adapters import merged, random_adapter
from tests.inference.conftest import SMOL, Node, running_node
from tests.inference.engines import torch_engine
from tests.inference.test_engine import run

BASE = "smollm2-135m"
PROMPT = "The capital of France is"
TARGETS = ("attention.q", "attention.v", "ffn.down")


def folder_of(node: Node) -> Path:
    """Where the node has converted its text model to."""
    (folder,) = (path for path in (node.torch._cache_dir / "models").iterdir() if (path / "config.json").exists())
    return folder


def adapter_of(node: Node, *, seed: int, base: str = "") -> LoraAdapter:
    return random_adapter(load_config(folder_of(node)), seed=seed, targets=TARGETS, size=2.0, base=base)


def saved(node: Node, path: Path, *, seed: int, base: str = "") -> str:
    """Write an adapter of the node's text model; returns its folder."""
    adapter = adapter_of(node, seed=seed, base=base)
    save_adapter(path, adapter, config=load_config(folder_of(node)), base_model=BASE, alpha=8)
    return str(path)


@pytest.fixture(scope="module")
async def adapted(real: Node, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """The node with the real models and two adapters of the text model."""
    home = tmp_path_factory.mktemp("adapters")
    weights = (await real.client.models.get(BASE)).metadata["weights_hash"]
    assert isinstance(weights, str)
    await real.client.models.register(f"{BASE}@one", provider_model_id=saved(real, home / "1", seed=1, base=weights))
    await real.client.models.register(f"{BASE}@two", provider_model_id=saved(real, home / "2", seed=2))
    for name in ("one", "two"):
        await real.client.models.wait_ready(f"{BASE}@{name}")
    yield real
    for name in ("one", "two"):
        await real.client.models.unregister(f"{BASE}@{name}")


async def complete(node: Node, model: str) -> v1.CompletionResponse:
    return await node.client.inference.complete(model, PROMPT, max_tokens=8, logprobs=0)


async def test_an_adapter_answers_as_the_merged_weights_do_beside_its_base(adapted: Node) -> None:
    names = [BASE, f"{BASE}@one", f"{BASE}@two"]
    answers = await asyncio.gather(*(complete(adapted, name) for name in names))
    folder = folder_of(adapted)
    base, text = load_model(folder, dtype=torch.float32), load_text(folder)
    for seed, answer in enumerate(answers):
        model = merged(base, adapter_of(adapted, seed=seed)) if seed else base
        request = Request(
            request_id="x",
            prompt_ids=tuple(text.tokenizer.encode(PROMPT)),
            max_tokens=8,
            stop_ids=text.tokenizer.eos_ids,
            sampling=Sampling(top_logprobs=0),
        )
        expected = run(torch_engine(model, limits=EngineLimits(cached_tokens=1024)), request)["x"]
        got = [value for entry in answer.logprobs for value in entry.logprobs_by_token.values()]
        assert got == pytest.approx([e.logprobs.chosen for e in expected if e.logprobs], abs=1e-4)
    assert len({answer.content for answer in answers}) == 3


async def test_an_adapters_answer_streams(adapted: Node) -> None:
    whole = await adapted.client.inference.chat(f"{BASE}@one", "Name a colour.", max_tokens=6)
    deltas = [
        event.progress.delta.text
        async for event in adapted.client.inference.stream_chat(f"{BASE}@one", "Name a colour.", max_tokens=6)
        if event.WhichOneof("event") == "progress"
    ]
    assert "".join(deltas) == text_of(whole.completion_message.content)


async def test_an_adapter_is_listed_with_its_base_and_what_it_changes(adapted: Node) -> None:
    listed = {model.identifier: model for model in await adapted.client.models.list()}
    one, two = listed[f"{BASE}@one"], listed[f"{BASE}@two"]
    assert one.provider_id == "torch"
    assert one.metadata["base_model"] == BASE
    assert one.metadata["adapter_rank"] == 4
    assert json_format.MessageToDict(one.metadata)["adapter_targets"] == ["attention.q", "attention.v", "ffn.down"]
    assert one.metadata["base_verified"] is True
    assert two.metadata["base_verified"] is False


async def test_a_base_with_adapters_is_not_unregistered(adapted: Node) -> None:
    with pytest.raises(FailedPreconditionError, match=f"unregister them first: {BASE}@one, {BASE}@two"):
        await adapted.client.models.unregister(BASE)


async def test_an_adapter_comes_back_after_the_engine_was_killed(adapted: Node) -> None:
    before = await complete(adapted, f"{BASE}@one")
    pid = adapted.torch.engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while adapted.torch.engine.pid == pid:
            await asyncio.sleep(0.05)
        while True:
            try:
                after = await complete(adapted, f"{BASE}@one")
                break
            except StackError as error:
                assert error.reason in {"ENGINE_DIED", "NOT_READY"}  # noqa: PT017
                await asyncio.sleep(0.1)
    assert after.content == before.content
    for name in (BASE, f"{BASE}@one", f"{BASE}@two"):
        await adapted.client.models.wait_ready(name)


async def test_a_request_of_an_adapter_that_is_unregistered_ends_with_unavailable(
    adapted: Node, tmp_path: Path
) -> None:
    name = f"{BASE}@gone"
    await adapted.client.models.register(name, provider_model_id=saved(adapted, tmp_path / "a", seed=3))
    await adapted.client.models.wait_ready(name)
    with pytest.raises(UnavailableError, match="unregistered"):  # noqa: PT012 (the stream fails as it is read)
        async for event in adapted.client.inference.stream_chat(name, "Tell me a long story.", max_tokens=2000):
            if event.sequence == 2:
                await adapted.client.models.unregister(name)
    await complete(adapted, BASE)
    with pytest.raises(NotFoundError):
        await complete(adapted, name)


async def test_an_adapter_that_does_not_fit_its_base_does_not_serve(adapted: Node, tmp_path: Path) -> None:
    wrong_base = saved(adapted, tmp_path / "base", seed=1, base="sha256:another")
    wrong_shape = Path(saved(adapted, tmp_path / "shape", seed=1))
    settings = json.loads((wrong_shape / "adapter_config.json").read_text())
    (wrong_shape / "adapter_config.json").write_text(json.dumps(settings | {"r": 5}))
    cases = {wrong_base: "trained on weights sha256:another, this base has gguf:", str(wrong_shape): "has shape"}
    for number, (folder, message) in enumerate(cases.items()):
        await adapted.client.models.register(f"{BASE}@bad{number}", provider_model_id=folder)
        with pytest.raises(InvalidArgumentError, match=message):
            await adapted.client.models.wait_ready(f"{BASE}@bad{number}")
        await adapted.client.models.unregister(f"{BASE}@bad{number}")


@pytest.mark.parametrize(
    ("model", "options", "error"),
    [
        ("nobody@x", {}, NotFoundError),
        ("@x", {}, InvalidArgumentError),
        (f"{BASE}@", {}, InvalidArgumentError),
        (f"{BASE}@one@two", {}, InvalidArgumentError),
        (f"{BASE}@x", {"provider_id": "scripted"}, InvalidArgumentError),
        (f"{BASE}@x", {"model_type": v1.MODEL_TYPE_EMBEDDING}, InvalidArgumentError),
        ("all-minilm-l6-v2@x", {}, InvalidArgumentError),
    ],
)
async def test_an_adapter_of_no_text_model_is_refused(
    real: Node, model: str, options: dict[str, object], error: type[StackError]
) -> None:
    with pytest.raises(error):
        await real.client.models.register(model, **options)  # type: ignore[arg-type]


async def test_a_provider_without_adapters_says_so(scripted: Node) -> None:
    await scripted.client.models.register("scripted@x")
    with pytest.raises((InvalidArgumentError, UnsupportedError), match="no adapters"):
        await scripted.client.models.wait_ready("scripted@x")


async def test_adapters_are_configured_and_kept_over_a_restart(real: Node, tmp_path: Path) -> None:
    (tmp_path / "home" / "cache").mkdir(parents=True)
    (tmp_path / "home" / "cache" / "models").symlink_to(real.torch._cache_dir / "models")
    configured = {"model_id": f"{BASE}@configured", "provider_model_id": saved(real, tmp_path / "a", seed=1)}
    settings = {"dtype": "float32", "cached_tokens": 1024}
    async with running_node(tmp_path / "home", [configured, SMOL], torch=settings) as node:
        await node.client.models.register(f"{BASE}@kept", provider_model_id=saved(real, tmp_path / "b", seed=2))
        await node.client.models.wait_ready(f"{BASE}@kept")
        before = [(await complete(node, f"{BASE}@{name}")).content for name in ("configured", "kept")]
    async with running_node(tmp_path / "home", [configured, SMOL], torch=settings) as node:
        await node.client.models.wait_ready(f"{BASE}@kept")
        assert [(await complete(node, f"{BASE}@{name}")).content for name in ("configured", "kept")] == before
    assert before[0] != before[1]
