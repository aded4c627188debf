"""Joining legs."""

import numpy as np
import pytest

from services.memory.chunks import Found
from services.memory.fusion import ByRank, ByScore, Ranked, diversify, fed_back, join


def leg(name: str, *found: tuple[int, float]) -> Ranked:
    return Ranked(name=name, by_vector=name == "vector", found=[Found(number, score) for number, score in found])


VECTOR = leg("vector", (1, 0.9), (2, 0.8), (3, 0.1))
WORDS = leg("keyword", (3, 12.0), (2, 11.0))


def test_ranks_are_joined_by_the_published_formula() -> None:
    joined = dict(join([VECTOR, WORDS], ByRank()))
    assert joined == pytest.approx({1: 1 / 61, 2: 1 / 62 + 1 / 62, 3: 1 / 63 + 1 / 61})


def test_a_chunk_that_both_legs_found_stands_before_one_that_a_single_leg_found() -> None:
    assert [number for number, _ in join([VECTOR, WORDS], ByRank())] == [3, 2, 1]


def test_equal_scores_are_ordered_by_vector_rank_and_then_by_number() -> None:
    words = leg("keyword", (9, 1.0))
    vector = leg("vector", (8, 1.0))
    assert [number for number, _ in join([words, vector], ByRank())] == [8, 9]
    other = leg("other", (7, 1.0))
    assert [number for number, _ in join([words, other], ByRank())] == [7, 9]


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, [1, 2, 3]), (0.0, [3, 2, 1])])
def test_the_whole_weight_on_one_leg_gives_its_order(alpha: float, expected: list[int]) -> None:
    joined = join([VECTOR, WORDS], ByScore(weights={"vector": alpha, "keyword": 1 - alpha}))
    first = expected[0]
    assert joined[0][0] == first
    assert joined[0][1] == pytest.approx(1.0)


def test_scores_are_scaled_from_0_to_1_before_they_are_weighted() -> None:
    joined = dict(join([VECTOR, WORDS], ByScore(weights={"vector": 0.5, "keyword": 0.5})))
    assert joined == pytest.approx({1: 0.5, 2: 0.5 * (0.7 / 0.8), 3: 0.5})


def test_diversity_prefers_what_is_unlike_the_chosen() -> None:
    vectors = {
        1: np.array([1, 0], np.float32),
        2: np.array([1, 0], np.float32),
        3: np.array([0, 1], np.float32),
    }
    joined = [(1, 1.0), (2, 0.9), (3, 0.5)]
    assert [number for number, _ in diversify(joined, vectors, diversity=0.0, limit=3)] == [1, 2, 3]
    assert [number for number, _ in diversify(joined, vectors, diversity=0.6, limit=2)] == [1, 3]


def test_feedback_moves_a_query_half_way_and_keeps_its_length() -> None:
    moved = fed_back(np.array([1, 0], np.float32), [np.array([0, 1], np.float32)])
    assert moved == pytest.approx([2**-0.5, 2**-0.5])
