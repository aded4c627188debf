"""What was found a moment ago."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """Values by key, each for a few seconds, so many at most.

    Args:
        seconds: For how long a value is believed.
        most: Values kept; the one that was used longest ago goes first.
        clock: Seconds, never going back.
    """

    def __init__(self, *, seconds: float, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._values: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def get(self, key: str) -> T | None:
        """The value; None when there is none, or none any more."""
        found = self._values.get(key)
        if found is None:
            return None
        if found[0] <= self._clock():
            del self._values[key]
            return None
        self._values.move_to_end(key)
        return found[1]

    def put(self, key: str, value: T) -> None:
        """Keep a value."""
        self._values[key] = (self._clock() + self._seconds, value)
        self._values.move_to_end(key)
        if len(self._values) > self._most:
            self._values.popitem(last=False)

    def drop(self, key: str) -> None:
        """Forget a value."""
        self._values.pop(key, None)

    def __len__(self) -> int:
        return len(self._values)
