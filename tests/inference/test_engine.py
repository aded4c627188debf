"""The engine is proved by equality: however requests are batched, chunked or cached, the tokens are the same."""

from typing import Any

import pytest
import torch

from services.inference.engine.engine import Engine
from services.inference.engine.request import Emission, EngineLimits, Request, Sampling
from services.llama.config import PRESETS
from services.llama.model import CausalAttention, Llama
from tests.inference.engines import device_engine, torch_engine

CONFIG = PRESETS["tiny"]
PROMPTS = [tuple((7 * i + 3 * j) % CONFIG.vocab_size for j in range(length)) for i, length in enumerate((1, 5, 23, 40))]


@pytest.fixture(scope="module")
def model() -> Llama:
    return Llama.seeded(CONFIG, seed=1)


def request(index: int, *, max_tokens: int = 12, **options: Any) -> Request:
    sampling = Sampling(**options)
    return Request(request_id=f"r{index}", prompt_ids=PROMPTS[index], max_tokens=max_tokens, sampling=sampling)


def run(engine: Engine, *requests: Request) -> dict[str, list[Emission]]:
    for item in requests:
        engine.add(item)
    return drain(engine)


def drain(engine: Engine) -> dict[str, list[Emission]]:
    emissions: dict[str, list[Emission]] = {}
    while not engine.idle:
        for emission in engine.step():
            emissions.setdefault(emission.request_id, []).append(emission)
    return emissions


def tokens(emissions: list[Emission]) -> list[int]:
    return [emission.token_id for emission in emissions]


def without_engine(model: Llama, prompt: tuple[int, ...], count: int) -> list[int]:
    """Greedy tokens by running the whole sequence anew for every token."""
    ids = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor(ids), positions_T=torch.arange(len(ids)), attend=CausalAttention())
        ids.append(int(logits[-1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_cached_decoding_equals_running_the_whole_sequence_anew(model: Llama, index: int) -> None:
    result = run(torch_engine(model, limits=EngineLimits()), request(index))
    assert tokens(result[f"r{index}"]) == without_engine(model, PROMPTS[index], 12)


def test_requests_in_one_batch_get_the_tokens_they_get_alone(model: Llama) -> None:
    together = run(torch_engine(model, limits=EngineLimits()), *(request(i) for i in range(4)))
    for i in range(4):
        alone = run(torch_engine(model, limits=EngineLimits()), request(i))
        assert tokens(together[f"r{i}"]) == tokens(alone[f"r{i}"])


@pytest.mark.parametrize("step_tokens", [1, 3, 7, 16])
def test_a_prompt_read_in_chunks_gives_the_same_tokens_as_read_whole(model: Llama, step_tokens: int) -> None:
    whole = run(torch_engine(model, limits=EngineLimits()), request(2), request(3))
    chunked = run(torch_engine(model, limits=EngineLimits(step_tokens=step_tokens)), request(2), request(3))
    assert {key: tokens(value) for key, value in chunked.items()} == {
        key: tokens(value) for key, value in whole.items()
    }


def test_a_request_that_joins_a_running_batch_changes_nothing_for_the_others(model: Llama) -> None:
    engine = torch_engine(model, limits=EngineLimits())
    engine.add(request(3))
    first = [emission for _ in range(4) for emission in engine.step()]
    engine.add(request(1))
    late = drain(engine)
    alone = run(torch_engine(model, limits=EngineLimits()), request(3))
    assert tokens(first) + tokens(late["r3"]) == tokens(alone["r3"])


def test_requests_beyond_the_running_limit_wait_and_are_served_in_order(model: Llama) -> None:
    engine = torch_engine(model, limits=EngineLimits(running_requests=1))
    for i in range(3):
        engine.add(request(i, max_tokens=2))
    order = []
    while not engine.idle:
        figures = engine.figures
        assert figures.running <= 1
        assert figures.waiting + figures.running <= 3
        order += [emission.request_id for emission in engine.step()]
    assert order == ["r0", "r0", "r1", "r1", "r2", "r2"]


def test_a_request_that_does_not_fit_the_cache_budget_waits_for_room(model: Llama) -> None:
    engine = torch_engine(model, limits=EngineLimits(cached_tokens=60))
    engine.add(request(3))
    engine.add(request(2))
    engine.step()
    assert (engine.figures.waiting, engine.figures.running) == (1, 1)
    assert set(drain(engine)) == {"r2", "r3"}


def test_an_aborted_request_emits_nothing_more_and_frees_its_cache(model: Llama) -> None:
    engine = torch_engine(model, limits=EngineLimits(running_requests=1))
    engine.add(request(2))
    engine.add(request(1))
    engine.step()
    assert engine.abort("r2")
    assert engine.abort("r1")
    assert not engine.abort("r1")
    assert engine.idle
    assert (engine.figures.waiting, engine.figures.running, engine.figures.held) == (0, 0, 0)


def test_a_stop_token_ends_the_request_and_is_the_last_one_emitted(model: Llama) -> None:
    wanted = without_engine(model, PROMPTS[2], 12)
    stop = wanted[5]
    item = Request(request_id="r", prompt_ids=PROMPTS[2], max_tokens=12, stop_ids=frozenset({stop}))
    emissions = run(torch_engine(model, limits=EngineLimits()), item)["r"]
    assert tokens(emissions) == wanted[: wanted.index(stop) + 1]
    assert [emission.finish for emission in emissions] == [None] * wanted.index(stop) + ["stop"]


def test_the_token_limit_ends_a_request_with_length(model: Llama) -> None:
    emissions = run(torch_engine(model, limits=EngineLimits()), request(1, max_tokens=3))["r1"]
    assert [emission.finish for emission in emissions] == [None, None, "length"]


def test_a_seeded_request_samples_the_same_alone_and_among_others(model: Llama) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "seed": 42}
    alone = run(torch_engine(model, limits=EngineLimits()), request(2, **options))
    others = [request(i, temperature=1.0, seed=i) for i in (0, 1, 3)]
    together = run(torch_engine(model, limits=EngineLimits()), *others, request(2, **options))
    assert tokens(alone["r2"]) == tokens(together["r2"])
    assert tokens(alone["r2"]) != tokens(run(torch_engine(model, limits=EngineLimits()), request(2))["r2"])


def test_different_seeds_sample_differently(model: Llama) -> None:
    results = {
        tuple(tokens(run(torch_engine(model, limits=EngineLimits()), request(2, temperature=1.5, seed=seed))["r2"]))
        for seed in range(5)
    }
    assert len(results) > 1


def test_logprobs_are_those_of_the_models_own_distribution(model: Llama) -> None:
    emissions = run(torch_engine(model, limits=EngineLimits()), request(2, top_logprobs=3, repetition_penalty=1.3))[
        "r2"
    ]
    first = emissions[0].logprobs
    assert first is not None
    ids = torch.tensor(PROMPTS[2])
    logits = model(ids, positions_T=torch.arange(len(ids)), attend=CausalAttention())[-1]
    expected = logits.log_softmax(-1).topk(3)
    assert [token for token, _ in first.top] == expected.indices.tolist()
    assert [value for _, value in first.top] == pytest.approx(expected.values.tolist(), abs=1e-5)
    assert first.chosen == pytest.approx(float(logits.log_softmax(-1)[emissions[0].token_id]), abs=1e-5)


def test_tokens_asked_for_are_reported_at_every_position_likely_or_not(model: Llama) -> None:
    asked = (0, 7, 7, CONFIG.vocab_size - 1)
    options: dict[str, Any] = {"temperature": 1.3, "seed": 1, "repetition_penalty": 1.3, "logit_bias": ((7, 5.0),)}
    emissions = run(
        torch_engine(model, limits=EngineLimits()), request(2, top_logprobs=0, asked_tokens=asked, **options)
    )["r2"]
    ids = [*PROMPTS[2], *tokens(emissions)]
    logits = model(torch.tensor(ids), positions_T=torch.arange(len(ids)), attend=CausalAttention())
    for place, emission in enumerate(emissions):
        expected = logits[len(PROMPTS[2]) - 1 + place].log_softmax(-1)[torch.tensor(asked)]
        assert emission.logprobs is not None
        assert emission.logprobs.asked == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_token_asked_for_outside_the_vocabulary_is_refused(model: Llama) -> None:
    for token in (-1, CONFIG.vocab_size):
        with pytest.raises(ValueError, match="vocabulary"):
            torch_engine(model, limits=EngineLimits()).add(request(2, top_logprobs=0, asked_tokens=(token,)))


@pytest.mark.parametrize("make", [torch_engine, device_engine])
def test_asking_for_one_token_after_a_cached_prefix_computes_only_what_is_new(model: Llama, make: Any) -> None:
    engine = make(model, limits=EngineLimits(cached_tokens=1024))
    prefix = tuple(j % CONFIG.vocab_size for j in range(64))

    def ask(name: str, prompt: tuple[int, ...]) -> tuple[Emission, int]:
        before = engine.figures.rows
        sampling = Sampling(top_logprobs=0, asked_tokens=(3, 5))
        emissions = run(engine, Request(request_id=name, prompt_ids=prompt, max_tokens=1, sampling=sampling))[name]
        return emissions[0], engine.figures.rows - before

    _, rows = ask("first", (*prefix, 1, 2, 3))
    assert rows == 67
    cached, rows = ask("second", (*prefix, 9, 8, 7, 6))
    assert (cached.cached_tokens, rows) == (64, 4)
    fresh = run(
        make(model, limits=EngineLimits(cached_tokens=1024)),
        Request(
            request_id="x", prompt_ids=(*prefix, 9, 8, 7, 6), max_tokens=1,
            sampling=Sampling(top_logprobs=0, asked_tokens=(3, 5)),
        ),
    )["x"][0]  # fmt: skip
    assert cached.logprobs is not None
    assert fresh.logprobs is not None
    assert cached.logprobs.asked == pytest.approx(fresh.logprobs.asked, abs=1e-5)


def test_what_does_not_fit_the_context_is_refused(model: Llama) -> None:
    engine = torch_engine(model, limits=EngineLimits())
    with pytest.raises(ValueError, match="exceed the context"):
        engine.add(request(1, max_tokens=CONFIG.max_context))
    with pytest.raises(ValueError, match="at least one prompt token"):
        engine.add(Request(request_id="empty", prompt_ids=(), max_tokens=1))
    engine.add(request(1))
    with pytest.raises(ValueError, match="in flight"):
        engine.add(request(1))
