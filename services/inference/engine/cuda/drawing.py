"""The seam to a runner that samples where its logits are, so that a step need not wait for the tokens of the last one.

The host launches a step, may launch the next one, and reads the first one's tokens when it needs them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from services.inference.engine.request import Logprobs, Sampling
from services.inference.engine.runner import Part, Runner

UNREAD = -1
"""In a part's `token_ids`: the token that its request drew last, which the host has not read."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How the token after a part with logits is chosen."""

    request_id: str
    """What is remembered between draws (the last token, those used so far) is remembered under this name."""
    sampling: Sampling
    prompt_ids: Sequence[int]
    """For the repetition penalty; read at the request's first draw."""
    seed: int
    """64 bits; with `number` it decides the draw, whoever else is in the step."""
    number: int
    """Tokens of the answer before this one."""
    mask_W: NDArray[np.int32] | None = None
    """Which tokens the grammar allows: one bit each, the lowest first."""


class Choice(NamedTuple):
    """A token, chosen."""

    token_id: int
    logprobs: Logprobs | None


class Drawn(Protocol):
    """The tokens of a launched step."""

    def read(self) -> list[Choice]:
        """Wait for the step and return its tokens in the order of the draws."""
        ...


@runtime_checkable
class DrawingRunner(Runner, Protocol):
    """A `Runner` that samples by itself. One thread calls it; steps are computed in the order of their launch."""

    def launch(self, parts: Sequence[Part], draws: Sequence[Draw]) -> Drawn:
        """Start a step.

        Args:
            parts: As for `forward`; the last token of one with logits may be `UNREAD`.
            draws: One for each part with logits, in their order.
        """
        ...

    def forget(self, request_id: str) -> None:
        """Drop what is remembered for a request; steps in flight are not disturbed."""
        ...
