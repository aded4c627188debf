import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastack import v1
from services.safety.guard.asking import listed_score
from services.safety.guard.scores import NumbersError, shares, word_score
from services.safety.providers.prompt_guard import attack_score, softmax, violation_type


def test_the_score_is_the_softmax_over_the_two_words() -> None:
    score = word_score(safe=math.log(0.6), unsafe=math.log(0.3))
    assert score.p_unsafe == pytest.approx(1 / 3)
    assert score.outside_mass == pytest.approx(0.1)


def test_two_very_unlikely_words_have_a_score_and_a_large_mass_outside() -> None:
    score = word_score(safe=-900.0, unsafe=-901.0)
    assert score.p_unsafe == pytest.approx(1 / (1 + math.e))
    assert score.outside_mass == 1.0


def test_one_nearly_impossible_word_leaves_the_other() -> None:
    assert word_score(safe=-9999.0, unsafe=0.0).p_unsafe == 1.0
    assert word_score(safe=0.0, unsafe=-9999.0).p_unsafe < 1e-300


@pytest.mark.parametrize(
    ("safe", "unsafe"),
    [(math.nan, 0.0), (0.0, math.nan), (-math.inf, -math.inf), (0.0, -math.inf), (-math.inf, 0.0), (math.inf, -1.0),
     (5.0, -1.0)],
)  # fmt: skip
def test_what_is_no_log_probability_is_refused(safe: float, unsafe: float) -> None:
    with pytest.raises(ValueError, match="log probabilities"):
        word_score(safe=safe, unsafe=unsafe)


def test_shares_sum_to_one_and_of_nothing_are_nothing() -> None:
    assert shares({"S1": -500.0, "S2": -500.0}) == {"S1": 0.5, "S2": 0.5}
    assert shares({}) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_shares_of_numbers_that_are_not_finite_are_refused_wherever_they_stand(value: float) -> None:
    for listed in ({"S1": value}, {"S1": -1.0, "S2": value}, {"S1": value, "S2": -1.0}):
        with pytest.raises(NumbersError, match="not finite"):
            shares(listed)


def position(chosen: str, **top: float) -> v1.TokenLogProbs:
    entries = [v1.TokenLogProb(token=token, logprob=value) for token, value in top.items()]
    likeliest = max(top.values())
    return v1.TokenLogProbs(chosen=v1.TokenLogProb(token=chosen, logprob=likeliest), top=entries)


def test_a_listed_score_is_read_behind_the_newlines() -> None:
    listed = [position("\n\n", **{"\n\n": -0.01}), position("unsafe", safe=math.log(0.2), unsafe=math.log(0.79))]
    score = listed_score(listed)
    assert score is not None
    assert score.p_unsafe == pytest.approx(0.79 / 0.99, abs=1e-6)


def test_a_word_that_is_not_listed_counts_as_the_least_likely_listed() -> None:
    score = listed_score([position("safe", safe=math.log(0.98), Safe=math.log(0.01), sure=math.log(0.005))])
    assert score is not None
    assert score.p_unsafe == pytest.approx(0.005 / 0.985, abs=1e-6)


def test_a_list_without_both_words_gives_no_score() -> None:
    assert listed_score([position("I", I=-0.1, We=-3.0)]) is None
    assert listed_score([position("safe", safe=math.log(0.3), sure=math.log(0.1))]) is None
    assert listed_score([]) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_list_with_a_number_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(NumbersError, match="not finite"):
        listed_score([position("safe", safe=math.log(0.9), unsafe=value)])


@given(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=3), st.floats(0.01, 100))
def test_classes_are_probabilities_at_any_temperature(logits: list[float], temperature: float) -> None:
    classes = softmax(logits, temperature)
    assert sum(classes) == pytest.approx(1)
    assert 0 <= attack_score(classes, injection=True) <= 1


@pytest.mark.parametrize("logits", [[], [1.0], [1.0] * 4, [1.0, math.nan], [math.inf, 0.0]])
def test_outputs_of_another_classifier_are_refused(logits: list[float]) -> None:
    with pytest.raises(ValueError, match=r"2 or 3 classes|not finite"):
        softmax(logits, 1.0)


def test_prompt_guard_1_counts_injections_only_where_asked_and_2_has_one_class() -> None:
    one, two = softmax([0.0, 1.0, 0.0], 1.0), softmax([0.0, 1.0], 1.0)
    assert attack_score(one, injection=False) == one[2]
    assert attack_score(one, injection=True) == one[1] + one[2]
    assert attack_score(two, injection=False) == attack_score(two, injection=True) == two[1]


def test_the_violation_type_has_the_classic_form() -> None:
    assert violation_type((0.05, 0.1, 0.85)) == "prompt_injection:embedded=0.10,malicious=0.85"
    assert violation_type((0.02, 0.98)) == "prompt_injection:malicious=0.98"
