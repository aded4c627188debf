"""Steps that start before the last one's tokens are read: the same tokens, and no block is lost or freed twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from services.inference.engine.engine import Engine
from services.inference.engine.request import Emission, EngineLimits, Request, Sampling
from services.inference.packaged import find_packaged
from services.llama import checkpoint
from services.llama.config import PRESETS
from services.llama.model import Llama
from tests.inference.adapters import random_adapter
from tests.inference.engines import device_engine, torch_engine
from tests.inference.test_paging import MODEL, Soak

CONFIG = PRESETS["tiny"]
LIMITS = EngineLimits(cached_tokens=1024, running_requests=8)


@pytest.fixture(scope="module")
def model() -> Llama:
    return Llama.seeded(CONFIG, seed=1)


def ask(index: int, *, max_tokens: int = 20, sampling: Sampling | None = None, **options: Any) -> Request:
    prompt = tuple((7 * index + 3 * j) % CONFIG.vocab_size for j in range(1 + 5 * index % 37))
    return Request(
        request_id=f"r{index}", prompt_ids=prompt, max_tokens=max_tokens, sampling=sampling or Sampling(), **options
    )


def drain(engine: Engine, *requests: Request) -> dict[str, list[Emission]]:
    for item in requests:
        engine.add(item)
    emissions: dict[str, list[Emission]] = {}
    while not engine.idle:
        for emission in engine.step():
            emissions.setdefault(emission.request_id, []).append(emission)
        engine.scheduler.check_integrity()
    assert engine.scheduler.pool.free == engine.scheduler.pool.size
    assert not engine.failures
    return emissions


def tokens(emissions: dict[str, list[Emission]]) -> dict[str, list[int]]:
    return {name: [emission.token_id for emission in emitted] for name, emitted in emissions.items()}


@pytest.mark.parametrize("overlap", [False, True])
def test_greedy_answers_are_those_of_the_plain_loop(model: Llama, overlap: bool) -> None:
    requests = [ask(index, max_tokens=1 + 3 * index) for index in range(12)]
    expected = drain(torch_engine(model, limits=LIMITS), *requests)
    assert drain(device_engine(model, limits=LIMITS, overlap=overlap), *requests) == expected


def test_a_stop_that_is_met_while_the_next_step_runs_ends_the_answer_there(model: Llama) -> None:
    whole = tokens(drain(torch_engine(model, limits=LIMITS), *(ask(index) for index in range(4))))
    requests = [ask(index, stop_ids=frozenset({whole[f"r{index}"][4 + index]})) for index in range(4)]
    answers = drain(device_engine(model, limits=LIMITS), *requests)
    assert answers == drain(torch_engine(model, limits=LIMITS), *requests)
    assert {emitted[-1].finish for emitted in answers.values()} == {"stop"}


def test_sampled_answers_with_penalties_are_the_same_with_and_without_overlap(model: Llama) -> None:
    options = Sampling(
        temperature=1.1, top_k=40, top_p=0.95, seed=4, repetition_penalty=1.2, presence_penalty=0.3, top_logprobs=2
    )
    requests = [ask(index, sampling=options) for index in range(10)]
    answers = [drain(device_engine(model, limits=LIMITS, overlap=overlap), *requests) for overlap in (False, True)]
    assert answers[0] == answers[1]
    alone = {f"r{n}": drain(device_engine(model, limits=LIMITS), requests[n])[f"r{n}"] for n in range(10)}
    assert tokens(answers[1]) == tokens(alone)


def test_a_preempted_request_gives_the_tokens_of_one_that_never_was(model: Llama) -> None:
    requests = [ask(index, max_tokens=40, sampling=Sampling(temperature=1.0, seed=index)) for index in range(8)]
    tight = device_engine(model, limits=EngineLimits(cached_tokens=192, running_requests=8))
    together = tokens(drain(tight, *requests))
    assert tight.scheduler.preemptions > 0
    assert together == tokens(drain(device_engine(model, limits=LIMITS), *requests))


def test_a_later_request_finds_the_whole_blocks_of_an_answer_that_has_ended(model: Llama) -> None:
    first = ask(3, max_tokens=40)
    cached = []
    for engine in (torch_engine(model, limits=LIMITS), device_engine(model, limits=LIMITS)):
        answer = tuple(tokens(drain(engine, first))["r3"])
        again = Request(request_id="again", prompt_ids=(*first.prompt_ids, *answer, 5), max_tokens=2)
        cached.append(drain(engine, again)["again"])
    assert cached[0] == cached[1]
    assert cached[1][0].cached_tokens == 48


def test_an_abort_in_flight_drops_the_token_and_a_new_request_may_take_the_name(model: Llama) -> None:
    engine = device_engine(model, limits=LIMITS)
    engine.add(ask(1))
    engine.add(ask(2))
    engine.step()
    assert engine.abort("r1")
    engine.scheduler.check_integrity()
    fresh = ask(1, max_tokens=6)
    answers = tokens(drain(engine, fresh))
    assert answers["r1"] == tokens(drain(torch_engine(model, limits=LIMITS), fresh))["r1"]
    assert answers["r2"] == tokens(drain(torch_engine(model, limits=LIMITS), ask(2)))["r2"]


def test_an_adapter_may_be_unloaded_while_its_step_is_in_flight(model: Llama) -> None:
    engine = device_engine(Llama.seeded(CONFIG, seed=1), limits=LIMITS)
    engine.load_adapter("a", random_adapter(CONFIG, seed=1))
    engine.add(ask(3, adapter="a"))
    engine.add(ask(4))
    engine.step()
    engine.unload_adapter("a")
    answers = tokens(drain(engine))
    assert answers == {"r4": tokens(drain(torch_engine(model, limits=LIMITS), ask(4)))["r4"]}


def test_answers_under_a_grammar_are_those_of_the_plain_loop(tmp_path: Path) -> None:
    folder = checkpoint.prepare(find_packaged("smollm2-135m"), cache_dir=tmp_path)
    tokenizer = checkpoint.load_text(folder).tokenizer
    small = Llama.seeded(replace(CONFIG, vocab_size=tokenizer.vocab_size), seed=3)
    grammar = 'start: /"[a-z]{2,8}"/'
    requests = [
        ask(1, grammar=grammar, stop_ids=frozenset(tokenizer.eos_ids)),
        ask(2),
        ask(3, grammar=grammar, max_tokens=3),
    ]
    limits = EngineLimits(cached_tokens=1024)
    expected = drain(torch_engine(small, limits=limits, tokenizer=tokenizer), *requests)
    assert drain(device_engine(small, limits=limits, tokenizer=tokenizer), *requests) == expected
    assert tokenizer.decode(tokens(expected)["r1"]).startswith('"')


class OverlapSoak(Soak):
    """The soak of the plain loop, on one that overlaps its steps."""

    def engine_of(self, limits: EngineLimits) -> Engine:
        return device_engine(MODEL, limits=limits)


TestOverlapSoak = OverlapSoak.TestCase
TestOverlapSoak.settings = settings(
    max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
