"""Blocks, prefixes and preemption: what is shared or taken away never changes a token, and no block is ever lost."""

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.inference.engine.block_pool import BlockPool, NoFreeBlocksError, chain_hash, root_hash
from services.inference.engine.engine import Engine
from services.inference.engine.request import Emission, EngineLimits, Request, Sampling
from services.inference.engine.scheduler import Scheduler
from services.llama.config import PRESETS
from services.llama.model import Llama
from tests.inference.engines import torch_engine

CONFIG = PRESETS["tiny"]
PREFIX = tuple((5 * j + 3) % CONFIG.vocab_size for j in range(70))


@pytest.fixture(scope="module")
def model() -> Llama:
    return Llama.seeded(CONFIG, seed=1)


def ask(name: str, prompt: tuple[int, ...], *, max_tokens: int = 8, **options: Any) -> Request:
    sampling = Sampling(**{k: options.pop(k) for k in ("temperature", "seed") if k in options})
    return Request(request_id=name, prompt_ids=prompt, max_tokens=max_tokens, sampling=sampling, **options)


def drain(engine: Engine) -> dict[str, list[Emission]]:
    emissions: dict[str, list[Emission]] = {}
    while not engine.idle:
        for emission in engine.step():
            emissions.setdefault(emission.request_id, []).append(emission)
        engine.scheduler.check_integrity()
    assert engine.scheduler.pool.free == engine.scheduler.pool.size
    return emissions


def run(engine: Engine, *requests: Request) -> dict[str, list[int]]:
    for request in requests:
        engine.add(request)
    return {name: [emission.token_id for emission in emitted] for name, emitted in drain(engine).items()}


def fresh(model: Llama, **limits: Any) -> Engine:
    return torch_engine(model, limits=EngineLimits(**{"cached_tokens": 2048, **limits}))


def test_a_cached_prefix_gives_the_tokens_of_an_own_prefix(model: Llama) -> None:
    engine = fresh(model)
    prompts = {f"r{n}": (*PREFIX, n, n + 1) for n in range(3)}
    alone = {name: run(fresh(model), ask(name, prompt))[name] for name, prompt in prompts.items()}
    for name, prompt in prompts.items():  # one after the other: the later ones find the prefix
        engine.add(ask(name, prompt))
        emitted = drain(engine)[name]
        assert [emission.token_id for emission in emitted] == alone[name]
        assert emitted[0].cached_tokens == (0 if name == "r0" else 64)


def test_requests_that_arrive_together_compute_their_shared_prefix_once(model: Llama) -> None:
    engine = fresh(model)
    prompts = [(*PREFIX, n) for n in range(6)]
    for number, prompt in enumerate(prompts):
        engine.add(ask(str(number), prompt))
    computed = []
    plan = engine.scheduler.plan

    def counting() -> Any:
        chosen = plan()
        computed.append(sum(rows for sequence, rows in chosen if sequence.generated == 0))
        return chosen

    engine.scheduler.plan = counting  # type: ignore[method-assign]
    drain(engine)
    assert sum(computed) == len(PREFIX) + 1 + 5 * (len(PREFIX) + 1 - 64)


def test_several_answers_to_one_prompt_are_those_of_single_requests_with_the_same_seeds(model: Llama) -> None:
    alone = [
        run(fresh(model), ask("x", PREFIX, temperature=1.2, seed=seed))["x"] for seed in range(4)
    ]  # fmt: skip
    engine = fresh(model)
    together = run(engine, *(ask(str(seed), PREFIX, temperature=1.2, seed=seed) for seed in range(4)))
    assert [together[str(seed)] for seed in range(4)] == alone


def test_a_preempted_request_gives_the_tokens_of_one_that_never_was(model: Llama) -> None:
    prompts = {f"r{n}": tuple((n * 11 + 3 * j) % CONFIG.vocab_size for j in range(20 + n)) for n in range(6)}
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 1.0}
    alone = {name: run(fresh(model), ask(name, p, seed=9, **options))[name] for name, p in prompts.items()}
    tight = fresh(model, cached_tokens=160)  # two and a half of the six
    together = run(tight, *(ask(name, p, seed=9, **options) for name, p in prompts.items()))
    assert tight.scheduler.preemptions > 0
    assert together == alone


def test_a_prefix_is_never_shared_between_tenants(model: Llama) -> None:
    engine = fresh(model)
    run(engine, ask("first", PREFIX))
    for number, tenant in enumerate(("other", "")):
        engine.add(ask(str(number), PREFIX, tenant=tenant))
        cached = drain(engine)[str(number)][0].cached_tokens
        assert cached == (0 if tenant else 64)


def test_a_prompt_that_ends_on_a_block_boundary_computes_its_last_block_again(model: Llama) -> None:
    engine = fresh(model)
    run(engine, ask("first", PREFIX[:64]))
    engine.add(ask("again", PREFIX[:64]))
    assert drain(engine)["again"][0].cached_tokens == 48


def test_freed_prefixes_are_forgotten_least_recently_used_first_and_tails_before_heads(model: Llama) -> None:
    engine = fresh(model, cached_tokens=320)  # twenty blocks
    long = tuple(j % CONFIG.vocab_size for j in range(160))
    run(engine, ask("a", long, max_tokens=1))
    run(engine, ask("b", PREFIX, max_tokens=1))
    run(engine, ask("c", tuple(reversed(long)), max_tokens=1))  # takes blocks of "a", the tail first
    engine.add(ask("a again", long, max_tokens=1))
    cached = drain(engine)["a again"][0].cached_tokens
    assert 0 < cached < 144


def test_a_request_that_could_never_fit_is_refused(model: Llama) -> None:
    with pytest.raises(ValueError, match="the cache of this engine holds 32"):
        fresh(model, cached_tokens=32).add(ask("x", PREFIX))


def test_priority_goes_first_and_gives_up_its_blocks_last() -> None:
    scheduler = Scheduler(limits=EngineLimits(running_requests=1, cached_tokens=256))
    for name, priority in (("low", 0), ("high", 5), ("middle", 1)):
        scheduler.add(ask(name, (1, 2, 3), priority=priority))
    order = []
    while not scheduler.idle:
        [(sequence, rows)] = scheduler.plan()
        scheduler.computed(sequence, rows)
        order.append(sequence.request.request_id)
        scheduler.remove(sequence.request.request_id)
    assert order == ["high", "middle", "low"]


def test_a_tenant_with_many_requests_does_not_starve_one_with_few() -> None:
    scheduler = Scheduler(limits=EngineLimits(running_requests=2, cached_tokens=1024))
    for number in range(10):
        scheduler.add(ask(f"greedy{number}", (number, 1, 2), tenant="greedy"))
    scheduler.add(ask("modest", (7, 8, 9), tenant="modest"))
    [first, second] = scheduler.plan()
    assert {first[0].request.tenant, second[0].request.tenant} == {"greedy", "modest"}


def test_hashes_depend_on_everything_before_a_block() -> None:
    root = root_hash(salt="a", adapter="b")
    assert root != root_hash(salt="ab", adapter="")
    one, other = chain_hash(root, (1, 2)), chain_hash(root_hash(salt="", adapter=""), (1, 2))
    assert one != other
    assert chain_hash(one, (3,)) != chain_hash(other, (3,))
    assert chain_hash(root, (1, 256)) != chain_hash(root, (256, 1))


def test_an_allocation_that_does_not_fit_takes_nothing() -> None:
    pool = BlockPool(blocks=3, block_size=16)
    held = pool.allocate(2)
    with pytest.raises(NoFreeBlocksError, match="2 blocks are wanted, 1 of 3 are free"):
        pool.allocate(2)
    pool.check_integrity([held])


MODEL = Llama.seeded(PRESETS["tiny"], seed=2)


class Soak(RuleBasedStateMachine):
    """Adds, aborts and steps in any order: the books agree after every move, every answer is the one it gets alone."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = self.engine_of(EngineLimits(cached_tokens=144, step_tokens=24, running_requests=4))
        self.numbers = itertools.count()
        self.requests: dict[str, Request] = {}
        self.answers: dict[str, list[int]] = {}

    def engine_of(self, limits: EngineLimits) -> Engine:
        """The engine under test."""
        return torch_engine(MODEL, limits=limits)

    @rule(
        length=st.integers(1, 60),
        start=st.integers(0, 3),
        max_tokens=st.integers(1, 20),
        tenant=st.sampled_from(["", "other"]),
        priority=st.integers(0, 2),
    )
    def add(self, *, length: int, start: int, max_tokens: int, tenant: str, priority: int) -> None:
        name = str(next(self.numbers))
        prompt = tuple((start + j) % 50 for j in range(length))  # few beginnings, so that prefixes are shared
        self.requests[name] = ask(name, prompt, max_tokens=max_tokens, tenant=tenant, priority=priority)
        self.engine.add(self.requests[name])
        self.answers[name] = []

    @rule(data=st.data())
    @precondition(lambda self: self.requests)
    def abort(self, *, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.requests)))
        self.engine.abort(name)
        del self.requests[name], self.answers[name]

    @rule(count=st.integers(1, 6))
    def step(self, *, count: int) -> None:
        for _ in range(count):
            for emission in self.engine.step():
                self.answers[emission.request_id].append(emission.token_id)
                if emission.finish:
                    self._compare(emission.request_id)

    def _compare(self, name: str) -> None:
        alone = run(torch_engine(MODEL, limits=EngineLimits(cached_tokens=144)), self.requests.pop(name))
        assert self.answers.pop(name) == alone[name]

    @invariant()
    def books_agree(self) -> None:
        self.engine.scheduler.check_integrity()

    def teardown(self) -> None:
        for _ in range(1000):
            if self.engine.idle:
                break
            self.step(count=1)
        assert self.engine.idle
        assert self.engine.scheduler.pool.free == self.engine.scheduler.pool.size


TestSoak = Soak.TestCase
TestSoak.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
