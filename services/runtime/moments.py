"""Times: microseconds since 1970 in the tables, `Timestamp` in messages."""

import time

from google.protobuf.timestamp_pb2 import Timestamp

from stack_client.errors import InvalidArgumentError

SECOND = 1_000_000
"""Microseconds."""
FIRST, LAST = -62_135_596_800, 253_402_300_799
"""Seconds since 1970 of the first and the last second of a `Timestamp`."""
NANOS = 1_000_000_000


def now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def stamp(moment: int | None) -> Timestamp | None:
    """A moment as a message; None stays None."""
    if moment is None:
        return None
    result = Timestamp()
    result.FromMicroseconds(moment)
    return result


def moment_of(message: Timestamp, *, field: str = "timestamp") -> int:
    """A message as a moment.

    Args:
        message: Of a request.
        field: Its name there, for errors.

    Raises:
        InvalidArgumentError: If it is no `Timestamp`: outside of the years 1 to 9999, or its nanoseconds of a second.
    """
    if not (FIRST <= message.seconds <= LAST and 0 <= message.nanos < NANOS):
        limits = "seconds from 0001-01-01 to 9999-12-31, nanos from 0 to 999999999"
        raise InvalidArgumentError(f"{field} is no moment; give {limits}", field=field)
    return message.ToMicroseconds()
