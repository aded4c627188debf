"""Buckets on a Redis, which all replicas share."""

import asyncio
import hashlib
import logging
import time
from typing import Any, Self

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.gateway.keys.rates import LocalRates, RedisAddress, exhausted, is_limited
from services.gateway.principal import Principal
from services.runtime.config import ConfigError

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.25
AWAY_SECONDS = 2.0
"""For how long a Redis that did not answer is not asked."""

# One hash a bearer: what is left of requests (r) and tokens (t), and when that was reckoned (at, microseconds of the
# Redis's own clock, so that replicas need not agree on theirs). A limit of 0 is none. Numbers are returned as text:
# Redis cuts the fraction off others. Answers {milliseconds to wait, 1 when requests lack}.
_ADMIT_OR_SPEND = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local requests, tokens = tonumber(ARGV[1]), tonumber(ARGV[2])
local spent = tonumber(ARGV[3])
local kept = redis.call('HMGET', KEYS[1], 'r', 't', 'at')
local passed = math.max(0, now - (tonumber(kept[3]) or now)) / 60000000
local r = math.min(requests, (tonumber(kept[1]) or requests) + requests * passed)
local t = math.min(tokens, (tonumber(kept[2]) or tokens) + tokens * passed)
local wait, lacks = 0, 0
if spent < 0 then
  if requests > 0 and r < 1 then
    wait, lacks = (1 - r) * 60000 / requests, 1
  end
  if tokens > 0 and t < 1 and (1 - t) * 60000 / tokens > wait then
    wait, lacks = (1 - t) * 60000 / tokens, 0
  end
  if wait > 0 then
    return {string.format('%.3f', wait), lacks}
  end
  if requests > 0 then
    r = r - 1
  end
else
  t = t - spent
end
local full = 60000
if tokens > 0 then
  full = math.max(full, math.ceil((tokens - t) * 60000 / tokens))
end
redis.call('HSET', KEYS[1], 'r', string.format('%.6f', r), 't', string.format('%.6f', t), 'at',
  string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', full + 1000))
return {'0', 0}
"""
_ADMIT = -1


class RedisRates:
    """Buckets on a Redis. When it is away, each replica counts by itself.

    Args:
        address: Of the Redis.
        prefix: Of its keys.
        patience: Seconds for one answer; a request that waits twice as long is counted here.

    Raises:
        ConfigError: If the URL is none.
    """

    def __init__(
        self, address: RedisAddress, *, prefix: str = "llamastack:rate:", patience: float = PATIENCE_SECONDS
    ) -> None:
        options: dict[str, Any] = {"password": address.password} if address.password else {}
        try:
            self._redis = Redis.from_url(
                address.url,
                socket_timeout=patience,
                socket_connect_timeout=patience,
                retry=Retry(NoBackoff(), 1),  # a connection that the other side closed is found out by using it
                **options,
            )
        except ValueError:  # not chained: the URL may hold a password
            message = "gateway.redis: is no URL of a Redis; give redis://host:port, rediss://... or unix:///path"
            raise ConfigError(message) from None
        self._script = self._redis.register_script(_ADMIT_OR_SPEND)
        self._prefix = prefix
        self._patience = patience
        self._local = LocalRates()
        self._away_until: float | None = None

    async def __aenter__(self) -> Self:
        """Nothing is connected before the first request."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def admit(self, principal: Principal) -> None:
        """Count a request; see `Rates`."""
        if not is_limited(principal):
            return
        answer = await self._run(principal, _ADMIT)
        if answer is None:
            await self._local.admit(principal)
            return
        milliseconds, of_requests = float(answer[0]), bool(answer[1])
        if milliseconds > 0:
            raise exhausted(principal, wait=milliseconds / 1000, of_requests=of_requests)

    async def spend(self, principal: Principal, tokens: int) -> None:
        """Count tokens; see `Rates`."""
        if principal.tokens_per_minute is None or tokens <= 0:
            return
        if await self._run(principal, tokens) is None:
            await self._local.spend(principal, tokens)

    async def _run(self, principal: Principal, spent: int) -> Any:  # noqa: ANN401 (the script's answer)
        """The answer of the script; None when the Redis is away."""
        if self._away_until is not None:
            if time.monotonic() < self._away_until:
                return None
            self._away_until = time.monotonic() + AWAY_SECONDS  # this request looks, the others need not wait
        # Subjects of tokens may have any characters and length.
        name = hashlib.blake2b(principal.key_id.encode(), digest_size=16).hexdigest()
        limits = [principal.requests_per_minute or 0, principal.tokens_per_minute or 0]
        try:
            async with asyncio.timeout(2 * self._patience):
                answer = await self._script(keys=[self._prefix + name], args=[*limits, spent])
        except (RedisError, OSError, TimeoutError) as error:
            if self._away_until is None:
                logger.warning(
                    "redis is away, so each replica counts rates by itself", extra={"reason": type(error).__name__}
                )
            self._away_until = time.monotonic() + AWAY_SECONDS
            return None
        if self._away_until is not None:
            self._away_until = None
            logger.info("redis is back, so replicas count rates together")
        return answer
