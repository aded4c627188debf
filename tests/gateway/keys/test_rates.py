"""Requests and tokens per minute: one suite over buckets of the process and on a Redis."""

import asyncio
import itertools
import logging
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.gateway.keys import Rates, RedisAddress, make_rates, redis_address
from services.gateway.keys.rates import LocalRates
from services.gateway.keys.redis_rates import RedisRates
from services.gateway.principal import Principal
from services.runtime.config import ConfigError
from stack_client.errors import ResourceExhaustedError
from tests.gateway.keys.redis_server import redis_server

BOUND_SECONDS = 20.0
_numbers = itertools.count()


@pytest.fixture(params=["local", "redis"])
async def rates(request: pytest.FixtureRequest) -> AsyncIterator[Rates]:
    async with LocalRates() if request.param == "local" else on(request.getfixturevalue("redis")) as made:
        yield made
        assert getattr(made, "_away_until", None) is None, "the Redis was not used"


def on(url: str, **fields: str) -> RedisRates:
    """Waits for its Redis however busy the machine is."""
    return RedisRates(RedisAddress(url=url, **fields), patience=BOUND_SECONDS)


def bearer(*, requests: int | None = None, tokens: int | None = None) -> Principal:
    """Somebody whom no other test knows."""
    return Principal(key_id=f"key {next(_numbers)}", requests_per_minute=requests, tokens_per_minute=tokens)


async def refused(rates: Rates, principal: Principal) -> ResourceExhaustedError:
    with pytest.raises(ResourceExhaustedError) as caught:
        await rates.admit(principal)
    return caught.value


async def admitted_at_last(rates: Rates, principal: Principal) -> None:
    """Wait as the error says, as a client does."""
    async with asyncio.timeout(BOUND_SECONDS):
        while True:
            try:
                return await rates.admit(principal)
            except ResourceExhaustedError as error:
                await asyncio.sleep(error.retry_after or 0)


async def test_as_many_requests_pass_as_are_allowed_in_a_minute(rates: Rates) -> None:
    principal = bearer(requests=5)
    for _ in range(5):
        await rates.admit(principal)
    error = await refused(rates, principal)
    assert error.reason == "QUOTA_EXCEEDED"
    assert error.http_status == 429
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 12
    assert "5 requests per minute" in error.message
    await rates.admit(bearer(requests=5))  # another one is not concerned


async def test_a_refused_request_costs_nothing(rates: Rates) -> None:
    principal = bearer(requests=3, tokens=60_000)
    await rates.spend(principal, 60_050)
    async with asyncio.timeout(BOUND_SECONDS):
        while not await passes(rates, principal):
            await asyncio.sleep(0)
    for _ in range(2):
        await rates.admit(principal)
    await refused(rates, principal)


async def passes(rates: Rates, principal: Principal) -> bool:
    try:
        await rates.admit(principal)
    except ResourceExhaustedError:
        return False
    return True


async def test_more_tokens_may_be_spent_than_there_are_and_the_next_request_waits(rates: Rates) -> None:
    principal = bearer(tokens=60)
    await rates.admit(principal)
    await rates.spend(principal, 160)
    error = await refused(rates, principal)
    assert "60 tokens per minute" in error.message
    assert error.metadata["limit"] == "tokens_per_minute"
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 101
    quick = bearer(tokens=60_000)
    await rates.spend(quick, 60_200)
    await admitted_at_last(rates, quick)


async def test_requests_come_back_one_by_one(rates: Rates) -> None:
    principal = bearer(requests=600)
    for _ in range(10_000):
        try:
            await rates.admit(principal)
        except ResourceExhaustedError:
            break
    for _ in range(3):
        await admitted_at_last(rates, principal)


async def test_who_has_no_limits_is_never_refused(rates: Rates) -> None:
    principal = bearer()
    for _ in range(50):
        await rates.admit(principal)
        await rates.spend(principal, 10**9)
    only_requests = bearer(requests=100)
    await rates.spend(only_requests, 10**9)
    await rates.admit(only_requests)
    only_tokens = bearer(tokens=100)
    for _ in range(200):
        await rates.admit(only_tokens)


async def test_concurrent_requests_are_counted_each(rates: Rates) -> None:
    principal = bearer(requests=10)
    results = await asyncio.gather(*(rates.admit(principal) for _ in range(40)), return_exceptions=True)
    assert sum(result is None for result in results) == 10
    assert all(isinstance(result, ResourceExhaustedError) for result in results if result is not None)


async def test_the_longer_wait_is_told(rates: Rates) -> None:
    principal = bearer(requests=1, tokens=6000)
    await rates.admit(principal)
    await rates.spend(principal, 6001)
    error = await refused(rates, principal)
    assert error.metadata["limit"] == "requests_per_minute"
    await rates.spend(principal, 60_000)
    error = await refused(rates, principal)
    assert error.metadata["limit"] == "tokens_per_minute"
    assert error.retry_after is not None
    assert error.retry_after > 500


async def test_spending_nothing_counts_nothing(rates: Rates) -> None:
    principal = bearer(tokens=1)
    await rates.spend(principal, 0)
    await rates.admit(principal)


async def test_names_of_any_characters_are_counted_apart(rates: Rates) -> None:
    one = Principal(key_id="https://idp.example#ann\n{x}", requests_per_minute=1)
    two = Principal(key_id="https://idp.example#ann\n{x}" + "y" * 1000, requests_per_minute=1)
    await rates.admit(one)
    await rates.admit(two)
    await refused(rates, one)


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.moment = 0.0

    def __call__(self) -> float:
        return self.moment


async def test_a_bucket_fills_evenly_and_never_over_its_limit() -> None:
    clock = Clock()
    rates = LocalRates(clock=clock)
    principal = bearer(requests=6, tokens=60)
    for _ in range(6):
        await rates.admit(principal)
    assert (await refused(rates, principal)).retry_after == pytest.approx(10)
    clock.moment += 10
    await rates.admit(principal)
    await refused(rates, principal)
    clock.moment += 10_000
    for _ in range(6):
        await rates.admit(principal)
    await refused(rates, principal)
    clock.moment += 60
    await rates.spend(principal, 600)
    assert (await refused(rates, principal)).retry_after == pytest.approx(541)
    clock.moment += 541
    await rates.admit(principal)


async def test_full_buckets_are_forgotten_and_debts_are_not() -> None:
    clock = Clock()
    rates = LocalRates(clock=clock, pruned_at=10)
    debtor = bearer(tokens=10)
    await rates.spend(debtor, 10_000)
    for _ in range(9):
        await rates.admit(bearer(requests=1))
    clock.moment += 60
    await rates.admit(bearer(requests=1))
    assert len(rates) == 2
    await refused(rates, debtor)


async def test_replicas_count_together_on_a_redis(redis: str) -> None:
    principal = bearer(requests=4)
    async with on(redis) as one, on(redis) as two:
        for rates in (one, two, one, two):
            await rates.admit(principal)
        await refused(one, principal)
        await refused(two, principal)


async def test_what_is_kept_on_a_redis_ends_by_itself(redis: str) -> None:
    async with RedisRates(RedisAddress(url=redis), prefix="ends:", patience=BOUND_SECONDS) as rates:
        await rates.admit(bearer(requests=4))
        debtor = bearer(tokens=60)
        await rates.spend(debtor, 660)
        lives = sorted([await rates._redis.pttl(key) async for key in rates._redis.scan_iter("ends:*")])
    assert 0 < lives[0] <= 61_000
    assert 600_000 < lives[1] <= 661_000


async def test_requests_pass_while_the_redis_is_away_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:
        async with on(f"unix://{folder}/r.sock", password="the-password") as rates:
            principal = bearer(requests=3)
            for _ in range(3):
                await rates.admit(principal)
                rates._away_until = 0.0 if rates._away_until else None  # as if some time had passed
            await refused(rates, principal)
            assert [record.message for record in caplog.records] == [
                "redis is away, so each replica counts rates by itself"
            ]
            with redis_server(Path(folder), "--requirepass", "the-password"):
                async with asyncio.timeout(BOUND_SECONDS):
                    while rates._away_until is not None:
                        rates._away_until = 0.0
                        await rates.spend(bearer(tokens=1), 1)
                for _ in range(3):
                    await rates.admit(principal)
                await refused(rates, principal)
            await rates.admit(bearer(requests=1))
            assert rates._away_until
    assert [record.message for record in caplog.records] == [
        "redis is away, so each replica counts rates by itself",
        "redis is back, so replicas count rates together",
        "redis is away, so each replica counts rates by itself",
    ]
    assert "the-password" not in caplog.text


async def test_a_redis_that_does_not_answer_holds_no_request_for_long() -> None:
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:
        gone = asyncio.Event()

        async def stall(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await gone.wait()
            writer.close()

        server = await asyncio.start_unix_server(stall, f"{folder}/r.sock")
        async with server, make_rates(RedisAddress(url=f"unix://{folder}/r.sock")) as rates:
            async with asyncio.timeout(BOUND_SECONDS):
                await rates.admit(bearer(requests=1))
            gone.set()


def test_the_redis_and_its_password_come_from_the_configuration_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text("hidden\n")
    assert redis_address() is None
    assert isinstance(make_rates(redis_address()), LocalRates)
    given = redis_address("redis://one", file)
    assert given is not None
    assert (given.url, given.password) == ("redis://one", "hidden")
    assert "hidden" not in repr(given)
    with pytest.raises(ConfigError, match=r"gateway\.redis is not"):
        redis_address("", file)
    with pytest.raises(ConfigError, match="cannot be read"):
        redis_address("redis://one", tmp_path / "missing")
    monkeypatch.setenv("STACK_GATEWAY_REDIS", "redis://two")
    monkeypatch.setenv("STACK_GATEWAY_REDIS_PASSWORD_FILE", str(file))
    found = redis_address()
    assert found is not None
    assert (found.url, found.password) == ("redis://two", "hidden")


def test_a_url_that_is_none_is_refused_without_being_quoted() -> None:
    with pytest.raises(ConfigError, match=r"gateway\.redis") as caught:
        make_rates(RedisAddress(url="http://user:hidden@host"))
    assert "hidden" not in str(caught.value)
