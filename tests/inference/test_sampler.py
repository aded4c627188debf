"""Every sampling option, on distributions small enough to reason about."""

import torch

from services.inference.engine.request import Sampling
from services.inference.engine.sampler import SequenceSampler

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -4.0])


def draws(
    logits: torch.Tensor = LOGITS, *, count: int = 300, prompt: tuple[int, ...] = (), **options: object
) -> list[int]:
    sampler = SequenceSampler(Sampling(**options), prompt_ids=prompt, vocab_size=len(logits))  # type: ignore[arg-type]
    return [sampler.choose(logits) for _ in range(count)]


def test_greedy_takes_the_most_likely_token() -> None:
    assert set(draws(count=3)) == {0}


def test_low_temperature_approaches_greedy_and_high_temperature_spreads() -> None:
    assert set(draws(temperature=0.05, seed=1)) == {0}
    assert set(draws(temperature=2.0, seed=1)) == {0, 1, 2, 3, 4}


def test_frequencies_follow_the_softmax() -> None:
    chosen = draws(temperature=1.0, seed=3, count=4000)
    shares = torch.bincount(torch.tensor(chosen), minlength=5) / 4000
    assert torch.allclose(shares, LOGITS.softmax(-1), atol=0.03)


def test_top_k_keeps_only_the_k_most_likely() -> None:
    assert set(draws(temperature=2.0, top_k=2, seed=1)) == {0, 1}
    assert set(draws(temperature=2.0, top_k=99, seed=1)) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_smallest_set_that_reaches_p_and_at_least_one() -> None:
    probabilities = LOGITS.softmax(-1)
    just_two = float(probabilities[:2].sum()) - 0.01
    assert set(draws(temperature=1.0, top_p=just_two, seed=1)) == {0, 1}
    assert set(draws(temperature=1.0, top_p=0.01, seed=1)) == {0}


def test_a_seed_repeats_the_draws_and_no_seed_does_not() -> None:
    assert draws(temperature=1.0, seed=7) == draws(temperature=1.0, seed=7)
    assert draws(temperature=1.0, seed=-7) == draws(temperature=1.0, seed=-7)
    assert draws(temperature=1.0) != draws(temperature=1.0)


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    assert draws(count=1, prompt=(0,), repetition_penalty=1.9) == [0]  # 2/1.9 still beats 1
    assert draws(torch.tensor([2.0, 1.5, 0.0]), count=1, prompt=(0,), repetition_penalty=1.9) == [1]
    assert draws(torch.tensor([-1.0, -1.5, -9.0]), count=1, prompt=(0,), repetition_penalty=1.9) == [1]
    assert draws(torch.tensor([2.0, 1.5, 0.0]), count=2, repetition_penalty=1.9) == [0, 1]


def test_presence_penalty_is_subtracted_once_and_frequency_penalty_per_use() -> None:
    logits = torch.tensor([2.0, 1.5, -9.0])
    assert draws(logits, count=3, presence_penalty=1.0) == [0, 1, 0]
    assert draws(logits, count=5, frequency_penalty=0.4) == [0, 0, 1, 0, 1]
    assert draws(logits, count=2, prompt=(0,), presence_penalty=1.0) == [0, 1]  # the prompt does not count


def test_logit_bias_adds_to_single_tokens() -> None:
    assert draws(count=1, logit_bias=((4, 100.0),)) == [4]
    assert draws(count=1, logit_bias=((0, -100.0),)) == [1]
