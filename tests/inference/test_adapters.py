"""LoRA in the engine: an adapter's requests answer as the merged weights do, whoever else is in the batch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from services.inference.engine.request import EngineLimits, Request
from services.inference.engine.runner import Part, TorchRunner
from services.llama.config import PRESETS
from services.llama.model import Llama
from tests.inference.adapters import merged, random_adapter
from tests.inference.engines import torch_engine
from tests.inference.test_engine import drain, run, tokens

CONFIG = PRESETS["tiny"]
PROMPT = tuple(range(40))
ONE = random_adapter(CONFIG, seed=1)
TWO = random_adapter(CONFIG, seed=2, rank=7, targets=("attention.q", "attention.v"))


@pytest.fixture(scope="module")
def model() -> Llama:
    return Llama.seeded(CONFIG, seed=1)


def ask(name: str, adapter: str = "", **options: Any) -> Request:
    return Request(request_id=name, prompt_ids=PROMPT, max_tokens=12, adapter=adapter, **options)


def logits(model: Llama, ids: tuple[int, ...], *, adapter: str = "") -> Tensor:
    """Of every position: the first 20 as one prompt, the others decoded one by one."""
    runner = TorchRunner(model, blocks=8, block_size=16)
    if adapter:
        runner.load_adapter(adapter, ONE)
    rows = []
    for start, end in [(0, 20), *((at, at + 1) for at in range(20, len(ids)))]:
        part = Part(token_ids=ids[start:end], start=start, blocks=range(4), adapter=adapter, logits=True)
        rows.append(runner.forward([part]))
    return torch.cat(rows)


def test_logits_with_an_adapter_are_those_of_the_merged_weights(model: Llama) -> None:
    with_adapter = logits(model, PROMPT, adapter="one")
    torch.testing.assert_close(with_adapter, logits(merged(model, ONE), PROMPT), rtol=0, atol=1e-4)
    assert (with_adapter - logits(model, PROMPT)).abs().max() > 0.1


def test_requests_of_several_adapters_and_the_base_share_a_batch(model: Llama) -> None:
    engine = torch_engine(model, limits=EngineLimits(step_tokens=64))
    engine.load_adapter("one", ONE)
    engine.load_adapter("two", TWO)
    names = ["", "two", "one", "", "one", "two"]
    # Shorter prompts decode while longer ones are still read, so that a step holds rows of every kind.
    requests = [
        Request(request_id=str(i), prompt_ids=PROMPT[: 40 - 6 * i], max_tokens=12, adapter=name)
        for i, name in enumerate(names)
    ]
    answers = run(engine, *requests)
    models = {"": model, "one": merged(model, ONE), "two": merged(model, TWO)}
    for request in requests:
        alone = torch_engine(models[request.adapter], limits=EngineLimits())
        expected = run(alone, Request(request_id="x", prompt_ids=request.prompt_ids, max_tokens=12))
        assert tokens(answers[request.request_id]) == tokens(expected["x"])
    assert len({tuple(tokens(answers[str(i)])) for i in range(3)}) == 3


def test_adapters_never_share_a_prefix_and_one_adapters_requests_do(model: Llama) -> None:
    engine = torch_engine(model, limits=EngineLimits())
    engine.load_adapter("one", ONE)
    engine.load_adapter("two", TWO)
    cached = {}
    for name, adapter in (("base", ""), ("one", "one"), ("two", "two"), ("base again", ""), ("one again", "one")):
        cached[name] = run(engine, ask(name, adapter))[name][0].cached_tokens
    assert cached == {"base": 0, "one": 0, "two": 0, "base again": 32, "one again": 32}


def test_an_adapter_loaded_under_an_earlier_name_finds_none_of_its_prefixes(model: Llama) -> None:
    engine = torch_engine(model, limits=EngineLimits())
    engine.load_adapter("a", ONE)
    run(engine, ask("before", "a"))
    engine.unload_adapter("a")
    engine.load_adapter("a", TWO)
    after = run(engine, ask("after", "a"))["after"]
    assert after[0].cached_tokens == 0
    assert tokens(after) == tokens(run(torch_engine(merged(model, TWO), limits=EngineLimits()), ask("x"))["x"])


def test_unloading_an_adapter_drops_its_requests_and_leaves_the_others(model: Llama) -> None:
    engine = torch_engine(model, limits=EngineLimits(running_requests=2))
    engine.load_adapter("one", ONE)
    for name, adapter in (("base", ""), ("runs", "one"), ("waits", "one")):
        engine.add(ask(name, adapter))
    first = engine.step()
    engine.unload_adapter("one")
    rest = drain(engine)
    assert set(rest) == {"base"}
    expected = run(torch_engine(model, limits=EngineLimits()), ask("base"))["base"]
    assert [e.token_id for e in first if e.request_id == "base"] + tokens(rest["base"]) == tokens(expected)
    figures = engine.figures
    assert (figures.waiting, figures.running, figures.held) == (0, 0, 0)
    engine.scheduler.check_integrity()


def test_without_adapters_the_model_carries_no_hooks() -> None:
    model = Llama.seeded(CONFIG, seed=1)
    engine = torch_engine(model, limits=EngineLimits())
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    engine.load_adapter("one", ONE)
    assert any(module._forward_hooks for module in linears)
    engine.unload_adapter("one")
    assert not any(module._forward_hooks for module in linears)


def test_a_request_of_an_unknown_adapter_is_refused(model: Llama) -> None:
    with pytest.raises(ValueError, match="adapter nobody is not loaded"):
        torch_engine(model, limits=EngineLimits()).add(ask("x", "nobody"))
