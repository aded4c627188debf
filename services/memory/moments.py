"""Times: microseconds since 1970 in the tables, `Timestamp` in messages."""

import time

from google.protobuf.timestamp_pb2 import Timestamp

SECOND = 1_000_000
"""Microseconds."""


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


def moment_of(message: Timestamp) -> int:
    """A message as a moment."""
    return message.ToMicroseconds()
