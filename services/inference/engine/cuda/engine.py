"""The loop of a model whose runner samples by itself: the next step starts before the tokens of the last one are read.

A request's row in the next step needs neither its last token (which stays with the runner) nor its end: when reading
shows that the request had ended, the extra row's token is dropped. Its blocks are free at once, although the step in
flight still writes to them, since whatever is written to them next belongs to a later step, and steps are computed in
order. Blocks become findable only up to the tokens that are known.
"""

from dataclasses import dataclass

import numpy as np
import torch

from services.inference.engine.cuda.drawing import UNREAD, Choice, Draw, DrawingRunner, Drawn
from services.inference.engine.engine import Engine
from services.inference.engine.request import Emission, EngineLimits
from services.inference.engine.sampler import SequenceSampler
from services.inference.engine.scheduler import Sequence
from services.llama.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Flight:
    """A launched step whose tokens are not read."""

    drawn: Drawn
    drawing: list[tuple[Sequence, SequenceSampler]]
    """Requests that get a token from it."""

    @property
    def must_land(self) -> bool:
        """Whether the next step depends on its tokens: a grammar's next mask does."""
        return any(sampler.constraint is not None for _, sampler in self.drawing)


class DeviceEngine(Engine):
    """See `Engine`.

    Args:
        runner: Computes and samples.
        limits: How much it takes on.
        tokenizer: Of the model; grammars need it.
        overlap: Whether to start a step before the last one is read.
    """

    def __init__(
        self, runner: DrawingRunner, *, limits: EngineLimits, tokenizer: Tokenizer | None = None, overlap: bool = True
    ) -> None:
        super().__init__(runner, limits=limits, tokenizer=tokenizer)
        self._drawing_runner = runner
        self._overlap = overlap
        self._flight: _Flight | None = None

    @property
    def idle(self) -> bool:
        """See `Engine`."""
        return super().idle and self._flight is None

    def abort(self, request_id: str) -> bool:
        """See `Engine`."""
        self._drawing_runner.forget(request_id)
        return super().abort(request_id)

    @torch.inference_mode()
    def step(self) -> list[Emission]:
        """Launch a batch; returns the new tokens of the batch before, or of this one where steps do not overlap."""
        emissions: list[Emission] = []
        if self._flight is not None and self._flight.must_land:
            emissions += self._land()
        following = self._launch()
        emissions += self._land()
        self._flight = following
        if not self._overlap:
            emissions += self._land()
        return emissions

    def _launch(self) -> _Flight | None:
        parts, draws, drawing = [], [], []
        batch = self.scheduler.plan()
        self._note_first_steps(batch)
        for sequence, count in batch:
            part = self._part(sequence, count)
            if part.logits:
                sampler = self._samplers[sequence.request.request_id]
                try:
                    draws.append(self._draw(sequence, sampler))
                except Exception as error:  # noqa: BLE001 (one request's fault must not end those beside it)
                    self._fail(sequence, error)
                    continue
                drawing.append((sequence, sampler))
            parts.append(part)
            self.scheduler.computed(sequence, count)
        if not parts:
            return None
        drawn = self._drawing_runner.launch(parts, draws)
        for sequence, _ in drawing:
            sequence.tokens.append(UNREAD)
            sequence.unread += 1
        return _Flight(drawn, drawing)

    def _draw(self, sequence: Sequence, sampler: SequenceSampler) -> Draw:
        request = sequence.request
        mask = None if sampler.constraint is None else sampler.constraint.mask()
        return Draw(
            request_id=request.request_id,
            sampling=request.sampling,
            prompt_ids=request.prompt_ids,
            seed=sampler.seed,
            number=sequence.generated,
            mask_W=None if mask is None else mask.view(np.int32),
        )

    def _land(self) -> list[Emission]:
        """Wait for the step in flight and take its tokens."""
        flight, self._flight = self._flight, None
        if flight is None:
            return []
        emissions = []
        for (sequence, sampler), choice in zip(flight.drawing, flight.drawn.read(), strict=True):
            if self._samplers.get(sequence.request.request_id) is not sampler:
                continue  # it has ended since
            try:
                emissions.append(self._take(sequence, sampler, choice))
            except Exception as error:  # noqa: BLE001 (as above)
                self._fail(sequence, error)
        return emissions

    def _take(self, sequence: Sequence, sampler: SequenceSampler, choice: Choice) -> Emission:
        """Put a token in its place."""
        sequence.tokens[-sequence.unread] = choice.token_id
        sequence.unread -= 1
        if sampler.constraint is not None:
            sampler.constraint.accept(choice.token_id)
        self.scheduler.computed(sequence, 0)
        return self._emit(sequence, choice.token_id, choice.logprobs)
