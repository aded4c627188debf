"""Texts that wait for an encoder, whole or as windows: those of all callers of a model share batches of one length.

The requests take turns in leading a batch, so that a short text does not wait behind a long one, and none starves. The
rest of a batch are the windows, of whomever, whose length is nearest, so that it pads little.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch


class Window(NamedTuple):
    """One window of one request."""

    request_id: str
    place: int
    """Its place in the request."""
    ids: list[int]
    first: int | None = None
    """Tokens that belong to the first of two texts; None = it is one text."""


@dataclass
class _Work:
    """A request in progress."""

    model: str
    windows: Sequence[list[int]]
    firsts: Sequence[int] | None
    waiting: set[int]
    rows: dict[int, torch.Tensor] = field(default_factory=dict)

    def window(self, request_id: str, place: int) -> Window:
        """One of its windows."""
        return Window(request_id, place, self.windows[place], self.firsts[place] if self.firsts else None)


class BatchQueue:
    """Requests to encoders, in the order of their arrival.

    Args:
        windows: Windows per batch at most.
        tokens: Tokens per batch at most, padding included; a single window may exceed it.
    """

    def __init__(self, *, windows: int, tokens: int) -> None:
        self._most_windows = windows
        self._most_tokens = tokens
        self._works: dict[str, _Work] = {}
        self._turns: deque[str] = deque()
        """Requests, the one that leads next first."""

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._works)

    def add(
        self, model: str, request_id: str, windows: Sequence[list[int]], firsts: Sequence[int] | None = None
    ) -> None:
        """Queue a request of at least one window; `firsts` is given with pairs of texts, see `Window.first`."""
        self._works[request_id] = _Work(model, windows, firsts, set(range(len(windows))))
        self._turns.append(request_id)

    def drop(self, request_id: str) -> None:
        """Forget a request, if it is here."""
        if self._works.pop(request_id, None) is not None:
            self._turns.remove(request_id)

    def take(self) -> tuple[str, list[Window]]:
        """The next batch and its model. Its windows stay queued until `put` or `drop`."""
        lead_id = self._turns[0]
        self._turns.rotate(-1)
        lead = self._works[lead_id]
        place = min(lead.waiting, key=lambda index: len(lead.windows[index]))
        length = len(lead.windows[place])
        works = [(request_id, work) for request_id, work in self._works.items() if work.model == lead.model]
        others = (
            (abs(len(work.windows[index]) - length), order, request_id, index)
            for order, (request_id, work) in enumerate(works)
            for index in work.waiting
            if (request_id, index) != (lead_id, place)
        )
        batch = [lead.window(lead_id, place)]
        longest = length
        for _, _, request_id, index in heapq.nsmallest(self._most_windows - 1, others):
            window = self._works[request_id].window(request_id, index)
            longest = max(longest, len(window.ids))
            if longest * (len(batch) + 1) > self._most_tokens:
                break
            batch.append(window)
        return lead.model, batch

    def put(self, window: Window, row: torch.Tensor) -> torch.Tensor | None:
        """Give a window its result; all rows of the request, (W, ...), which is forgotten, when it was the last one."""
        work = self._works.get(window.request_id)
        if work is None:
            return None
        work.waiting.discard(window.place)
        work.rows[window.place] = row
        if work.waiting:
            return None
        self.drop(window.request_id)
        return torch.stack([work.rows[index] for index in range(len(work.windows))])
