"""Windows that wait to be classified: those of all callers of a model share batches of about one length.

Each batch is led by the request that has waited longest among the models' turns, so that none starves; the rest of it
are the windows, of whomever, whose length is nearest, so that it pads little.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Window(NamedTuple):
    """One window of one request."""

    request_id: str
    place: int
    """Its place in the request."""
    ids: list[int]


@dataclass
class _Work:
    """A request in progress."""

    model: str
    windows: Sequence[list[int]]
    waiting: set[int]
    rows: dict[int, list[float]] = field(default_factory=dict)


class ClassifyQueue:
    """Requests of all classifiers, in the order of their arrival.

    Args:
        windows: Windows per batch at most.
        tokens: Tokens per batch at most, padding included; a single window may exceed it.
    """

    def __init__(self, *, windows: int, tokens: int) -> None:
        self._most_windows = windows
        self._most_tokens = tokens
        self._works: dict[str, _Work] = {}
        self._turns: deque[str] = deque()

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._works)

    def add(self, model: str, request_id: str, windows: Sequence[list[int]]) -> None:
        """Queue a request of at least one window."""
        self._works[request_id] = _Work(model, windows, set(range(len(windows))))
        if model not in self._turns:
            self._turns.append(model)

    def drop(self, request_id: str) -> None:
        """Forget a request, if it is here."""
        self._works.pop(request_id, None)

    def take(self) -> tuple[str, list[Window]]:
        """The next batch and its model; the models take turns. Its windows stay queued until `put` or `drop`."""
        model = self._next_model()
        works = {request_id: work for request_id, work in self._works.items() if work.model == model}
        first_id, first = next(iter(works.items()))
        lead = min(first.waiting, key=lambda index: len(first.windows[index]))
        length = len(first.windows[lead])
        others = (
            (abs(len(work.windows[index]) - length), order, request_id, index)
            for order, (request_id, work) in enumerate(works.items())
            for index in work.waiting
            if (request_id, index) != (first_id, lead)
        )
        batch = [Window(first_id, lead, first.windows[lead])]
        longest = length
        for _, _, request_id, index in heapq.nsmallest(self._most_windows - 1, others):
            window = Window(request_id, index, works[request_id].windows[index])
            longest = max(longest, len(window.ids))
            if longest * (len(batch) + 1) > self._most_tokens:
                break
            batch.append(window)
        return model, batch

    def put(self, window: Window, row: list[float]) -> list[list[float]] | None:
        """Give a window its result; all rows of the request, which is forgotten, when it was the last one."""
        work = self._works.get(window.request_id)
        if work is None:
            return None
        work.waiting.discard(window.place)
        work.rows[window.place] = row
        if work.waiting:
            return None
        del self._works[window.request_id]
        return [work.rows[index] for index in range(len(work.windows))]

    def _next_model(self) -> str:
        """The model whose turn it is; models without work leave the round."""
        busy = {work.model for work in self._works.values()}
        while self._turns[0] not in busy:
            self._turns.popleft()
        model = self._turns[0]
        self._turns.rotate(-1)
        return model
