"""Choosing the next token.

Every request is sampled from its own row with its own generator, so that a seeded draw does not depend on which
requests share the batch. (Its logits may, in the last bits: see DECISIONS.md.)

Shapes: B requests, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from services.inference.engine.grammar import Constraint
from services.inference.engine.request import Logprobs, Sampling

LEAST_TEMPERATURE = 1e-5


class SequenceSampler:
    """Sampling state of one request: its random generator and what it has used so far."""

    def __init__(
        self,
        sampling: Sampling,
        *,
        prompt_ids: tuple[int, ...],
        vocab_size: int,
        constraint: Constraint | None = None,
    ) -> None:
        self.sampling = sampling
        self.constraint = constraint
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**64)
        self._seen_V: Tensor | None = None
        self._counts_V: Tensor | None = None
        if sampling.changes_logits:
            self._seen_V = torch.zeros(vocab_size, dtype=torch.bool)
            self._seen_V[torch.tensor(prompt_ids, dtype=torch.long)] = True
            self._counts_V = torch.zeros(vocab_size)

    def choose(self, logits_V: Tensor) -> int:
        """The next token id from fp32 logits; remembers it for the penalties."""
        if self.sampling.changes_logits:
            logits_V = self._penalise(logits_V.clone())
        if self.constraint is not None:
            logits_V = self.constraint.apply(logits_V)
        token = int(logits_V.argmax()) if self.sampling.temperature == 0 else self._draw(logits_V)
        if self.constraint is not None:
            self.constraint.accept(token)
        if self._seen_V is not None and self._counts_V is not None:
            self._seen_V[token] = True
            self._counts_V[token] += 1
        return token

    @property
    def seed(self) -> int:
        """The request's own, or the fresh one; 64 bits."""
        return self._generator.initial_seed()

    @property
    def finished(self) -> bool:
        """Whether the answer's grammar is complete and nothing may follow."""
        return self.constraint is not None and self.constraint.finished

    def _penalise(self, logits_V: Tensor) -> Tensor:
        options = self.sampling
        assert self._seen_V is not None
        assert self._counts_V is not None
        if options.repetition_penalty != 1.0:
            weakened_V = torch.where(
                logits_V > 0, logits_V / options.repetition_penalty, logits_V * options.repetition_penalty
            )
            logits_V = torch.where(self._seen_V, weakened_V, logits_V)
        logits_V -= options.frequency_penalty * self._counts_V
        logits_V -= options.presence_penalty * (self._counts_V > 0)
        for token, bias in options.logit_bias:
            logits_V[token] += bias
        return logits_V

    def _draw(self, logits_V: Tensor) -> int:
        """Temperature, then top-k, then top-p, then one draw."""
        options = self.sampling
        # From the maximum down, so that a tiny temperature cannot overflow to infinity: it only comes out greedy.
        scaled_V = (logits_V - logits_V.max()) / max(options.temperature, LEAST_TEMPERATURE)
        keep = min(options.top_k or len(scaled_V), len(scaled_V))
        if keep == len(scaled_V) and options.top_p >= 1.0:
            return int(torch.multinomial(scaled_V.softmax(-1), 1, generator=self._generator))
        values, ids = scaled_V.topk(keep) if keep < len(scaled_V) else scaled_V.sort(descending=True)
        probabilities = values.softmax(-1)
        if options.top_p < 1.0:
            # A token stays while the mass before it is below top_p; the first one always stays.
            before = probabilities.cumsum(-1) - probabilities
            probabilities = probabilities.masked_fill(before >= options.top_p, 0.0)
        return int(ids[torch.multinomial(probabilities, 1, generator=self._generator)])


def logprobs_of(logits_V: Tensor, *, chosen: int, top: int, asked: Sequence[int] = ()) -> Logprobs:
    """Log probabilities of the chosen token, the `top` most likely and those asked for, from the model's own logits."""
    logprobs_V = logits_V.log_softmax(-1)
    alternatives: tuple[tuple[int, float], ...] = ()
    if top:
        values, ids = logprobs_V.topk(top)
        alternatives = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    of_asked = tuple(logprobs_V[torch.tensor(asked)].tolist()) if asked else ()
    return Logprobs(chosen=float(logprobs_V[chosen]), top=alternatives, asked=of_asked)
