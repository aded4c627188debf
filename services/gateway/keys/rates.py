"""Requests and tokens per minute, by token buckets: a bucket holds what may be used in a minute and fills evenly."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from services.gateway.principal import Principal
from services.runtime.config import ConfigError
from stack_client.errors import ResourceExhaustedError

MINUTE = 60.0
LEAST_WAIT = 0.001
PRUNED_AT = 10_000
"""Bearers whose buckets are kept, from which on full buckets are thrown away."""


class Rates(Protocol):
    """Counts what bearers use. Use `async with`."""

    async def __aenter__(self) -> Self:
        """Open what is needed."""

    async def __aexit__(self, *exc_info: object) -> None:
        """Close it."""

    async def admit(self, principal: Principal) -> None:
        """Count a request, unless the bearer has none left or has used up its tokens.

        Raises:
            ResourceExhaustedError: QUOTA_EXCEEDED, with `retry_after`; then nothing is counted.
        """

    async def spend(self, principal: Principal, tokens: int) -> None:
        """Count the tokens of a request that was admitted; it may use more than there are, and the next one waits."""


@dataclass(slots=True)
class _Buckets:
    """What a bearer has left, and when that was reckoned."""

    requests: float
    tokens: float
    at: float


class LocalRates:
    """Buckets of this process: of several replicas, each allows as much as is allowed in all.

    Args:
        clock: Seconds, never going back.
        pruned_at: See `PRUNED_AT`.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, pruned_at: int = PRUNED_AT) -> None:
        self._clock = clock
        self._pruned_at = pruned_at
        self._buckets: dict[str, _Buckets] = {}

    async def __aenter__(self) -> Self:
        """Nothing to open."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Nothing to close."""

    async def admit(self, principal: Principal) -> None:
        """Count a request; see `Rates`."""
        if not is_limited(principal):
            return
        buckets = self._filled(principal)
        wait, of_requests = 0.0, False
        if principal.requests_per_minute is not None:
            wait = (1.0 - buckets.requests) * MINUTE / principal.requests_per_minute
            of_requests = wait > 0
        if principal.tokens_per_minute is not None:
            lacking = (1.0 - buckets.tokens) * MINUTE / principal.tokens_per_minute
            of_requests = of_requests and wait >= lacking
            wait = max(wait, lacking)
        if wait > 0:
            raise exhausted(principal, wait=wait, of_requests=of_requests)
        if principal.requests_per_minute is not None:
            buckets.requests -= 1.0

    async def spend(self, principal: Principal, tokens: int) -> None:
        """Count tokens; see `Rates`."""
        if principal.tokens_per_minute is not None and tokens > 0:
            self._filled(principal).tokens -= tokens

    def _filled(self, principal: Principal) -> _Buckets:
        """The bearer's buckets as they are now."""
        moment = self._clock()
        requests, tokens = principal.requests_per_minute or 0, principal.tokens_per_minute or 0
        found = self._buckets.get(principal.key_id)
        if found is None:
            if len(self._buckets) >= self._pruned_at:
                self._prune(moment)
            found = self._buckets[principal.key_id] = _Buckets(requests, tokens, moment)
            return found
        passed = (moment - found.at) / MINUTE
        found.requests = min(requests, found.requests + requests * passed)
        found.tokens = min(tokens, found.tokens + tokens * passed)
        found.at = moment
        return found

    def _prune(self, moment: float) -> None:
        """Forget buckets that are full again: those without debts after a minute."""
        gone = [name for name, one in self._buckets.items() if moment - one.at >= MINUTE and one.tokens >= 0]
        for name in gone:
            del self._buckets[name]

    def __len__(self) -> int:
        return len(self._buckets)


def is_limited(principal: Principal) -> bool:
    """Whether anything has to be counted."""
    return principal.requests_per_minute is not None or principal.tokens_per_minute is not None


def exhausted(principal: Principal, *, wait: float, of_requests: bool) -> ResourceExhaustedError:
    """The error of a bearer who must wait.

    Args:
        principal: The bearer.
        wait: Seconds until a request may succeed.
        of_requests: Whether requests are what lacks; otherwise tokens.
    """
    limit = principal.requests_per_minute if of_requests else principal.tokens_per_minute
    what = "requests" if of_requests else "tokens"
    wait = max(wait, LEAST_WAIT)
    message = f"the limit of {limit} {what} per minute is used up; try again in {wait:.3g} seconds"
    metadata = {"limit": f"{what}_per_minute", "value": str(limit)}
    return ResourceExhaustedError(message, reason="QUOTA_EXCEEDED", metadata=metadata, retry_after=wait)


@dataclass(frozen=True, kw_only=True)
class RedisAddress:
    """Where a Redis is."""

    url: str
    """`redis://host:6379/0`, `rediss://` or `unix:///path`; may hold a password, and so is never shown."""
    password: str = ""
    """Its password where the URL has none."""

    def __repr__(self) -> str:
        """Without what could be secret."""
        return "RedisAddress(...)"


def redis_address(given: str = "", password_file: Path | None = None) -> RedisAddress | None:
    """URL and password of the Redis; both may come from the environment, for they are secrets.

    Args:
        given: URL of the configuration, `gateway.redis`; empty takes that of `STACK_GATEWAY_REDIS`.
        password_file: File that holds the password; None takes the one named by `STACK_GATEWAY_REDIS_PASSWORD_FILE`.

    Returns:
        None when there is none.

    Raises:
        ConfigError: If the file cannot be read, or there is a password without a Redis.
    """
    url = given or os.environ.get("STACK_GATEWAY_REDIS", "")
    file = password_file or os.environ.get("STACK_GATEWAY_REDIS_PASSWORD_FILE")
    if not url:
        if password_file:
            raise ConfigError("gateway.redis_password_file: is set, but gateway.redis is not; give the URL too")
        return None
    try:
        return RedisAddress(url=url, password=Path(file).read_text(encoding="utf-8").strip() if file else "")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"gateway.redis_password_file: {file} cannot be read: {type(error).__name__}") from error


def make_rates(redis: RedisAddress | None = None) -> Rates:
    """Buckets on a Redis for all replicas, or of this process.

    Raises:
        ConfigError: If the Redis's URL is none.
    """
    if redis is None:
        return LocalRates()
    from services.gateway.keys.redis_rates import RedisRates  # noqa: PLC0415 (only where it is configured)

    return RedisRates(redis)
