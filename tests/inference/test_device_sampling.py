"""Sampling all rows of a step at once: as each would be sampled by itself."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from services.inference.engine.cuda.drawing import Choice, Draw
from services.inference.engine.cuda.sampling import DeviceSampler
from services.inference.engine.request import Sampling
from services.inference.engine.sampler import SequenceSampler, logprobs_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -4.0])


def draw(name: str = "x", *, number: int = 0, seed: int = 1, prompt: Sequence[int] = (), **options: Any) -> Draw:
    mask_W = options.pop("mask_W", None)
    sampling = Sampling(**options)
    return Draw(request_id=name, sampling=sampling, prompt_ids=prompt, seed=seed, number=number, mask_W=mask_W)


def choose(logits_RV: Tensor, draws: Sequence[Draw], sampler: DeviceSampler | None = None) -> list[Choice]:
    sampler = sampler or DeviceSampler(vocab_size=logits_RV.shape[1], device=DEVICE)
    return sampler.draw(logits_RV.to(DEVICE), draws).read()


def sequence(count: int, *, logits: Tensor = LOGITS, **options: Any) -> list[int]:
    """The tokens of one request over several steps."""
    sampler = DeviceSampler(vocab_size=len(logits), device=DEVICE)
    return [choose(logits[None], [draw(number=n, **options)], sampler)[0].token_id for n in range(count)]


def frequencies(logits: Tensor, count: int, **options: Any) -> Tensor:
    draws = [draw(str(n), number=n, seed=5, **options) for n in range(count)]
    tokens = [choice.token_id for choice in choose(logits.expand(count, -1), draws)]
    return torch.bincount(torch.tensor(tokens), minlength=len(logits)).double()


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Over the tokens that can be drawn at all; the others must not have been."""
    possible = probabilities > 0
    assert not counts[~possible].any()
    expected = probabilities[possible].double() * counts.sum()
    return float(((counts[possible] - expected) ** 2 / expected).sum())


def test_greedy_rows_get_the_token_that_the_cpu_sampler_takes() -> None:
    logits_RV = torch.randn((40, 300), generator=torch.Generator().manual_seed(1))
    tokens = [choice.token_id for choice in choose(logits_RV, [draw(str(row)) for row in range(40)])]
    assert tokens == logits_RV.argmax(-1).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.9},
        {"frequency_penalty": 0.4},
        {"presence_penalty": 1.0},
        {"logit_bias": ((4, 5.0), (0, -3.0))},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.3, "presence_penalty": 0.2, "logit_bias": ((2, 1.0),)},
    ],
)
def test_greedy_with_penalties_equals_the_cpu_sampler(options: dict[str, Any]) -> None:
    alone = SequenceSampler(Sampling(**options), prompt_ids=(0, 3), vocab_size=5)
    assert sequence(12, prompt=(0, 3), **options) == [alone.choose(LOGITS) for _ in range(12)]


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 2.5}, {"top_k": 3}, {"top_p": 0.8}, {"top_k": 4, "top_p": 0.9, "temperature": 1.7}],
)
def test_frequencies_follow_the_distribution_that_the_options_mean(options: dict[str, Any]) -> None:
    options = {"temperature": 1.0, **options}
    probabilities = (LOGITS / options["temperature"]).softmax(-1)
    probabilities[options.get("top_k", 5) :] = 0
    probabilities /= probabilities.sum()
    probabilities[probabilities.cumsum(-1) - probabilities >= options.get("top_p", 1.0)] = 0
    probabilities /= probabilities.sum()
    # 18.5 is exceeded once in a thousand by four degrees of freedom; the seed is fixed.
    assert chi_square(frequencies(LOGITS, 6000, **options), probabilities) < 18.5


def test_many_rare_tokens_are_drawn_as_often_as_they_should_be_together() -> None:
    logits = torch.full((20_000,), math.log(1e-5))
    logits[17] = math.log(1 - 1e-5 * 19_999)
    likely = 0
    for first in range(0, 2000, 250):
        draws = [draw(str(n), number=n, seed=11, temperature=1.0) for n in range(first, first + 250)]
        likely += sum(choice.token_id == 17 for choice in choose(logits.expand(250, -1), draws))
    assert 0.77 < likely / 2000 < 0.83  # 0.8, and three standard deviations to either side


def test_a_seeded_draw_does_not_depend_on_who_shares_the_step() -> None:
    logits_RV = torch.randn((9, 200), generator=torch.Generator().manual_seed(2))
    draws = [draw(str(row), seed=row - 4, number=row, temperature=1.5, top_k=[0, 20][row % 2]) for row in range(9)]
    together = choose(logits_RV, draws)
    assert together == [choose(logits_RV[row : row + 1], [draws[row]])[0] for row in range(9)]
    assert together[::-1] == choose(logits_RV.flip(0), draws[::-1])


def test_seeds_and_numbers_of_draws_give_different_tokens() -> None:
    flat_RV = torch.zeros((50, 1000))
    by_number = choose(flat_RV, [draw(str(n), number=n, temperature=1.0) for n in range(50)])
    by_seed = choose(flat_RV, [draw(str(n), seed=n, temperature=1.0) for n in range(50)])
    assert len({choice.token_id for choice in by_number}) > 40
    assert len({choice.token_id for choice in by_seed}) > 40


def test_a_tiny_temperature_is_greedy() -> None:
    assert set(sequence(20, temperature=1e-9)) == {0}


def test_a_mask_of_packed_bits_leaves_only_what_it_allows() -> None:
    allowed = [3, 31, 32, 40]
    words = np.zeros(2, dtype=np.uint32)
    for token in allowed:
        words[token // 32] |= np.uint32(1 << (token % 32))
    mask_W = words.view(np.int32)
    logits_RV = torch.zeros((200, 41))
    draws = [draw(str(n), number=n, temperature=1.0, mask_W=mask_W) for n in range(200)]
    assert {choice.token_id for choice in choose(logits_RV, draws)} == set(allowed)
    mates = [draw("a"), draw("b", mask_W=mask_W)]
    logits_RV[:2, 5], logits_RV[:2, 32] = 3.0, 2.0
    assert [choice.token_id for choice in choose(logits_RV[:2], mates)] == [5, 32]


def test_log_probabilities_are_those_of_the_models_own_logits() -> None:
    draws = [draw("a", top_logprobs=3, logit_bias=((2, 9.0),)), draw("b"), draw("c", top_logprobs=0)]
    first, second, third = choose(LOGITS.expand(3, -1), draws)
    expected = logprobs_of(LOGITS, chosen=2, top=3)
    assert first.logprobs is not None
    assert first.token_id == 2
    assert first.logprobs.chosen == pytest.approx(expected.chosen)
    assert [pair[0] for pair in first.logprobs.top] == [0, 1, 2]
    assert second.logprobs is None
    assert third.logprobs is not None
    assert third.logprobs.top == ()


def test_tokens_asked_for_by_some_rows_are_reported_to_them() -> None:
    draws = [
        draw("a", top_logprobs=0, asked_tokens=(4, 1, 4), logit_bias=((2, 9.0),)),
        draw("b", top_logprobs=2),
        draw("c", top_logprobs=1, asked_tokens=(0,), temperature=1.5),
        draw("d"),
    ]
    rows = choose(LOGITS.expand(4, -1), draws)
    expected = LOGITS.log_softmax(-1)
    asked = [row.logprobs.asked if row.logprobs else None for row in rows]
    assert asked[0] == pytest.approx(expected[torch.tensor([4, 1, 4])].tolist())
    assert asked[1] == ()
    assert asked[2] == pytest.approx([float(expected[0])])
    assert asked[3] is None


def test_places_of_forgotten_requests_are_used_again_and_more_are_made_when_needed() -> None:
    sampler = DeviceSampler(vocab_size=5, device=DEVICE)
    names = [str(n) for n in range(200)]
    logits_RV = torch.eye(5).repeat(40, 1)
    choose(logits_RV, [draw(name) for name in names], sampler)
    assert sampler.last_tokens(["0", "7", "199"]).tolist() == [0, 2, 4]
    places = len(sampler._tokens_A)
    for name in names:
        sampler.forget(name)
    choose(logits_RV, [draw(f"new {name}") for name in names], sampler)
    assert len(sampler._tokens_A) == places
