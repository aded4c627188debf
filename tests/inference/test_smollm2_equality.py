"""The engine's equalities on the real small model, in float32: however requests are run, the tokens are the same."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from services.inference.engine.request import Request
from services.inference.packaged import find_packaged
from services.llama import checkpoint
from services.llama.messages import ChatMessage
from services.llama.model import Llama
from tests.inference.test_paging import ask, drain, fresh, run

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours of the rainbow, and say which of them is the warmest.",
    "Write a short poem about a fox that crosses a frozen river at night.",
    "How many days has a week?",
)
SHARED = "You are a patient teacher. You answer in short, plain sentences, and you never make anything up. " * 2
TOKENS = 24
SAMPLED: dict[str, Any] = {"temperature": 0.8, "seed": 7}

Prompts = dict[str, tuple[int, ...]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in one order, and no threads that wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> checkpoint.TextSide:
    return checkpoint.load_text(_prepared(tmp_path_factory))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    return checkpoint.load_model(_prepared(tmp_path_factory), dtype=torch.float32, device="cpu")


def _prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return checkpoint.prepare(find_packaged("smollm2-135m"), cache_dir=tmp_path_factory.getbasetemp() / "smollm2")


@pytest.fixture(scope="module")
def prompts(text: checkpoint.TextSide) -> Prompts:
    return {
        f"r{number}": tuple(
            text.chat_format.render(
                [ChatMessage(role="system", content=SHARED), ChatMessage(role="user", content=question)]
            )
        )
        for number, question in enumerate(QUESTIONS)
    }


def requests(prompts: Prompts, **options: Any) -> list[Request]:
    return [ask(name, prompt, max_tokens=TOKENS, **options) for name, prompt in prompts.items()]


@pytest.fixture(scope="module")
def alone(model: Llama, prompts: Prompts) -> dict[str, list[int]]:
    """Greedy answers, each from an engine of its own."""
    return {item.request_id: run(fresh(model), item)[item.request_id] for item in requests(prompts)}


@pytest.fixture(scope="module")
def sampled_alone(model: Llama, prompts: Prompts) -> dict[str, list[int]]:
    """The same, sampled with a seed."""
    return {item.request_id: run(fresh(model), item)[item.request_id] for item in requests(prompts, **SAMPLED)}


def test_batched_is_single(
    model: Llama, prompts: Prompts, alone: dict[str, list[int]], sampled_alone: dict[str, list[int]]
) -> None:
    assert run(fresh(model), *requests(prompts)) == alone
    assert run(fresh(model), *requests(prompts, **SAMPLED)) == sampled_alone
    assert alone != sampled_alone


@pytest.mark.parametrize("step_tokens", [13, 48])
def test_chunked_is_whole(model: Llama, prompts: Prompts, alone: dict[str, list[int]], step_tokens: int) -> None:
    assert run(fresh(model, step_tokens=step_tokens), *requests(prompts)) == alone


def test_a_cached_prefix_is_an_own_prefix(model: Llama, prompts: Prompts, alone: dict[str, list[int]]) -> None:
    one = fresh(model)
    for place, item in enumerate(requests(prompts)):  # one after the other: the later ones find the shared beginning
        one.add(item)
        emitted = drain(one)[item.request_id]
        assert [emission.token_id for emission in emitted] == alone[item.request_id]
        assert (emitted[0].cached_tokens > 0) == (place > 0)


def test_preempted_is_never_preempted(model: Llama, prompts: Prompts, sampled_alone: dict[str, list[int]]) -> None:
    tokens = max(map(len, prompts.values())) + TOKENS + 40
    tight = fresh(model, cached_tokens=tokens)
    assert run(tight, *requests(prompts, **SAMPLED)) == sampled_alone
    assert tight.scheduler.preemptions > 0


def test_four_answers_are_four_single_requests_with_the_same_seeds(model: Llama, prompts: Prompts) -> None:
    prompt = prompts["r2"]

    def answer(seed: int) -> Request:
        return ask(str(seed), prompt, max_tokens=TOKENS, temperature=1.0, seed=seed)

    singles = {str(seed): run(fresh(model), answer(seed))[str(seed)] for seed in range(4)}
    assert run(fresh(model), *map(answer, range(4))) == singles
    assert len({tuple(tokens) for tokens in singles.values()}) == 4
