"""The loop of one text model: add and abort requests, and step them together.

Every step computes one batch of rows: one row per decoding request, and as many rows of waiting prompts as the token
budget leaves (so a long prompt is read in chunks while others go on). A row is a token with its position; the
model's linear layers see all rows at once, attention keeps the requests apart.

Shapes: T rows of the step, R rows that need logits, V vocabulary.
"""

from collections import deque

import torch

from services.inference.engine.kv_cache import SequenceCache, StepAttention
from services.inference.engine.request import Emission, EngineLimits, FinishCause, Logprobs, Request
from services.inference.engine.sampler import SequenceSampler, logprobs_of
from services.llama.model import Llama


class Sequence:
    """A running request: its cache, its sampler and the tokens that the model has not seen yet."""

    def __init__(self, request: Request, *, cache: SequenceCache, sampler: SequenceSampler) -> None:
        self.request = request
        self.cache = cache
        self.sampler = sampler
        self.pending = list(request.prompt_ids)
        self.generated = 0


class Engine:
    """Continuous batching over one `Llama`. Not thread-safe: one thread adds, aborts and steps."""

    def __init__(self, model: Llama, *, limits: EngineLimits) -> None:
        self._model = model
        self._device = model.embed.weight.device
        self._dtype = model.embed.weight.dtype
        self._limits = limits
        self._waiting: deque[Request] = deque()
        self._running: dict[str, Sequence] = {}

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._waiting and not self._running

    @property
    def counts(self) -> tuple[int, int, int]:
        """Requests waiting, requests running, tokens held in caches."""
        cached = sum(sequence.cache.length for sequence in self._running.values())
        return len(self._waiting), len(self._running), cached

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ValueError: If the id is in use or prompt and answer do not fit the context.
        """
        if request.request_id in self._running or any(r.request_id == request.request_id for r in self._waiting):
            raise ValueError(f"request id {request.request_id!r} is in flight already")
        if not request.prompt_ids or request.max_tokens < 1:
            raise ValueError("a request needs at least one prompt token and one new token")
        context = self._model.config.max_context
        if len(request.prompt_ids) + request.max_tokens > context:
            raise ValueError(f"{len(request.prompt_ids)} + {request.max_tokens} tokens exceed the context of {context}")
        self._waiting.append(request)

    def abort(self, request_id: str) -> bool:
        """Forget a request and free its cache; False when it is not in flight (any more)."""
        if self._running.pop(request_id, None) is not None:
            return True
        for request in self._waiting:
            if request.request_id == request_id:
                self._waiting.remove(request)
                return True
        return False

    @torch.inference_mode()
    def step(self) -> list[Emission]:
        """Compute one batch; returns the new token of every request whose prompt is read."""
        self._admit()
        batch = self._schedule()
        if not batch:
            return []
        ids: list[int] = []
        positions: list[int] = []
        last_rows: list[int] = []
        segments: list[tuple[SequenceCache, int]] = []
        for sequence, count in batch:
            past = sequence.cache.length
            sequence.cache.reserve(past + count)
            ids += sequence.pending[:count]
            positions += range(past, past + count)
            segments.append((sequence.cache, count))
            if count == len(sequence.pending):
                last_rows.append(len(ids) - 1)
        device = self._device
        logits_RV = self._model(
            torch.tensor(ids, device=device),
            positions_T=torch.tensor(positions, device=device),
            attend=StepAttention(segments),
            rows_R=torch.tensor(last_rows, device=device, dtype=torch.long),
        ).cpu()
        done = []
        for sequence, count in batch:
            sequence.cache.length += count
            del sequence.pending[:count]
            if not sequence.pending:
                done.append(sequence)
        return [self._advance(sequence, logits_V) for sequence, logits_V in zip(done, logits_RV, strict=True)]

    def _admit(self) -> None:
        """Move waiting requests to running while slots and cache budget allow; always at least one."""
        reserved = sum(_footprint(sequence.request) for sequence in self._running.values())
        while self._waiting and len(self._running) < self._limits.running_requests:
            request = self._waiting[0]
            if self._running and reserved + _footprint(request) > self._limits.cached_tokens:
                return
            reserved += _footprint(request)
            self._waiting.popleft()
            config = self._model.config
            self._running[request.request_id] = Sequence(
                request,
                cache=SequenceCache(
                    n_layers=config.n_layers,
                    n_kv_heads=config.n_kv_heads,
                    head_dim=config.head_dim,
                    dtype=self._dtype,
                    device=str(self._device),
                ),
                sampler=SequenceSampler(request.sampling, prompt_ids=request.prompt_ids, vocab_size=config.vocab_size),
            )

    def _schedule(self) -> list[tuple[Sequence, int]]:
        """Rows for each request of the step: decoding requests first, then prompts in order of arrival."""
        budget = self._limits.step_tokens
        decoding = [sequence for sequence in self._running.values() if sequence.generated]
        batch = [(sequence, 1) for sequence in decoding]
        budget -= len(decoding)
        for sequence in self._running.values():
            if sequence.generated == 0 and budget > 0:
                count = min(len(sequence.pending), budget)
                batch.append((sequence, count))
                budget -= count
        return batch

    def _advance(self, sequence: Sequence, logits_V: torch.Tensor) -> Emission:
        """Choose the sequence's next token and end the request when it is the last."""
        request = sequence.request
        token = sequence.sampler.choose(logits_V)
        logprobs: Logprobs | None = None
        if request.sampling.top_logprobs is not None:
            logprobs = logprobs_of(logits_V, chosen=token, top=request.sampling.top_logprobs)
        sequence.generated += 1
        sequence.pending.append(token)
        finish: FinishCause | None = None
        if token in request.stop_ids:
            finish = "stop"
        elif sequence.generated >= request.max_tokens:
            finish = "length"
        if finish:
            del self._running[request.request_id]
        return Emission(request.request_id, token, finish, logprobs)


def _footprint(request: Request) -> int:
    return len(request.prompt_ids) + request.max_tokens
