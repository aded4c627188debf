"""Judgements kept for a while: a dialog of ten messages costs one new check per turn.

Scores are kept as the shield gave them, so that another threshold needs no new judgement. What was not judged is never
kept.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from services.safety.registry import Entry
from services.safety.shield import Judgement, Subject


class Known(NamedTuple):
    """A judgement made before."""

    judgement: Judgement
    """As it was, at no cost."""
    stamp: str
    """Of the weights that made it."""


class JudgementCache:
    """The last judgements.

    Args:
        size: Judgements kept; 0 keeps none.
        seconds: How long.
        clock: Seconds, monotonic.
    """

    def __init__(self, *, size: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._size = size
        self._seconds = seconds
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[float, float, Known]] = OrderedDict()

    def get(self, key: bytes, *, threshold: float) -> Known | None:
        """A judgement that was made at this threshold or a lower one; at a higher one codes may not have been asked."""
        found = self._kept.get(key)
        if found is None:
            return None
        until, asked, known = found
        if self._clock() > until:
            del self._kept[key]
            return None
        score = known.judgement.score or 0.0
        if asked > threshold and threshold <= score < asked:
            return None  # below what was asked then, nobody took the closer look that is asked for now
        self._kept.move_to_end(key)
        return known

    def put(self, key: bytes, judgement: Judgement, *, threshold: float, stamp: str = "") -> None:
        """Keep a judgement, unless it is none; `stamp` says which weights made it."""
        if not self._size or judgement.failure or judgement.coverage < 1:
            return
        free = replace(judgement, guard_calls=0, guard_tokens=0, guard_bytes=0)
        self._kept[key] = (self._clock() + self._seconds, threshold, Known(free, stamp))
        self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Forget everything, for a guard may have changed."""
        self._kept.clear()


def key_of(entry: Entry, subject: Subject, *, tenant: str) -> bytes:
    """What a judgement depends on, but for the guard model's weights: tenant, shield, text and dialog."""
    digest = hashlib.sha256()
    for part in (tenant, entry.fingerprint, str(subject.surface), str(subject.settled), subject.text):
        raw = part.encode(errors="surrogatepass")
        digest.update(len(raw).to_bytes(8))
        digest.update(raw)
    for message in subject.dialog:
        raw = message.SerializeToString(deterministic=True)
        digest.update(len(raw).to_bytes(8))
        digest.update(raw)
    return digest.digest()
