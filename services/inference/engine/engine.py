"""The loop of one text model: add and abort requests, and step them together.

Every step computes one batch of rows that the scheduler chose. A row is a token with its position: the model's linear
layers see all rows at once, attention keeps the requests apart.

Shapes: T rows of the step, R rows that need logits, V vocabulary.
"""

import time
from dataclasses import replace

import torch

from services.inference.engine.grammar import Constraint, Grammars
from services.inference.engine.request import Emission, EngineLimits, Figures, FinishCause, Logprobs, Request
from services.inference.engine.runner import Part, Runner
from services.inference.engine.sampler import SequenceSampler, logprobs_of
from services.inference.engine.scheduler import Scheduler, Sequence
from services.llama.config import LlamaConfig
from services.llama.lora import LoraAdapter
from services.llama.tokenizer import Tokenizer


class Engine:
    """Continuous batching over one model. Not thread-safe: one thread adds, aborts and steps."""

    def __init__(self, runner: Runner, *, limits: EngineLimits, tokenizer: Tokenizer | None = None) -> None:
        self._runner = runner
        self.scheduler = Scheduler(limits=limits)
        self._samplers: dict[str, SequenceSampler] = {}
        self.failures: list[tuple[str, Exception]] = []
        """Requests that ended by a fault of their own since this list was last emptied."""
        self.queued: list[float] = []
        """Seconds that requests waited which had their first step since this list was last emptied."""
        self._arrived: dict[str, float] = {}
        self._tokenizer = tokenizer
        self._grammars: Grammars | None = None
        self._adapters: dict[str, str] = {}
        self._adapter_loads = 0

    @property
    def config(self) -> LlamaConfig:
        """Shape of the model."""
        return self._runner.config

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return self.scheduler.idle

    @property
    def figures(self) -> Figures:
        """How it is doing; adapters by the names that requests use."""
        figures = self.scheduler.figures
        if not self._adapters:
            return figures
        names = {key: name for name, key in self._adapters.items()}
        waiting, running = (
            tuple((names.get(key, key), count) for key, count in counts)
            for counts in (figures.waiting_adapters, figures.running_adapters)
        )
        return figures._replace(waiting_adapters=waiting, running_adapters=running)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ValueError: If the id is in use, prompt and answer do not fit the context or the cache, a token that is
                asked for does not exist, or the grammar cannot be compiled.
        """
        if request.request_id in self.scheduler:
            raise ValueError(f"request id {request.request_id!r} is in flight already")
        if not request.prompt_ids or request.max_tokens < 1:
            raise ValueError("a request needs at least one prompt token and one new token")
        if request.adapter and request.adapter not in self._adapters:
            raise ValueError(f"adapter {request.adapter} is not loaded")
        config = self._runner.config
        if len(request.prompt_ids) + request.max_tokens > config.max_context:
            length = f"{len(request.prompt_ids)} + {request.max_tokens}"
            raise ValueError(f"{length} tokens exceed the context of {config.max_context}")
        if not all(0 <= token < config.vocab_size for token in request.sampling.asked_tokens):
            raise ValueError(f"a token that is asked for lies outside the vocabulary of {config.vocab_size}")
        sampler = SequenceSampler(
            request.sampling,
            prompt_ids=request.prompt_ids,
            vocab_size=config.vocab_size,
            constraint=self._constraint(request) if request.grammar or request.calls else None,
        )
        self.scheduler.add(replace(request, adapter=self._adapters[request.adapter]) if request.adapter else request)
        self._samplers[request.request_id] = sampler
        self._arrived[request.request_id] = time.perf_counter()

    def abort(self, request_id: str) -> bool:
        """Forget a request and free its blocks; False when it is not in flight (any more)."""
        self._samplers.pop(request_id, None)
        self._arrived.pop(request_id, None)
        return self.scheduler.remove(request_id)

    def close(self) -> None:
        """Forget the model."""
        self._runner.close()

    def load_adapter(self, name: str, adapter: LoraAdapter) -> None:
        """Serve requests that name this adapter, in place of an earlier one of the name."""
        self.unload_adapter(name)
        self._adapter_loads += 1
        # A name of its own for every load: what is cached under an earlier adapter of this name is never found again.
        key = f"{name}#{self._adapter_loads}"
        self._runner.load_adapter(key, adapter)
        self._adapters[name] = key

    def unload_adapter(self, name: str) -> None:
        """Free an adapter, if it is loaded, and forget its requests."""
        key = self._adapters.pop(name, None)
        if key is not None:
            for request_id in self.scheduler.requests_of(adapter=key):
                self.abort(request_id)
            self._runner.unload_adapter(key)

    @torch.inference_mode()
    def step(self) -> list[Emission]:
        """Compute one batch; returns the new token of every request whose tokens are all computed."""
        batch = self.scheduler.plan()
        if not batch:
            return []
        self._note_first_steps(batch)
        parts = [self._part(sequence, count) for sequence, count in batch]
        logits_RV = self._runner.forward(parts)
        for sequence, count in batch:
            self.scheduler.computed(sequence, count)
        whole = [sequence for sequence, _ in batch if sequence.pending == 0]
        emissions = []
        for sequence, logits_V in zip(whole, logits_RV, strict=True):
            try:
                emissions.append(self._advance(sequence, logits_V))
            except Exception as error:  # noqa: BLE001 (one request's fault must not end those beside it)
                self._fail(sequence, error)
        return emissions

    def _part(self, sequence: Sequence, count: int) -> Part:
        """The next rows of a request."""
        end = sequence.computed + count
        return Part(
            token_ids=sequence.tokens[sequence.computed : end],
            start=sequence.computed,
            blocks=[block.index for block in sequence.blocks],
            adapter=sequence.request.adapter,
            logits=end == len(sequence.tokens),
        )

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """End a request by a fault of its own."""
        self.abort(sequence.request.request_id)
        self.failures.append((sequence.request.request_id, error))

    def _note_first_steps(self, batch: list[tuple[Sequence, int]]) -> None:
        if not self._arrived:
            return
        now = time.perf_counter()
        for sequence, _ in batch:
            arrived = self._arrived.pop(sequence.request.request_id, None)
            if arrived is not None:
                self.queued.append(now - arrived)

    def _constraint(self, request: Request) -> Constraint:
        """Compile a request's grammars; the vocabulary is prepared for it when the first one comes."""
        if self._grammars is None:
            if self._tokenizer is None:
                raise ValueError("this engine has no tokenizer, which grammars need")
            self._grammars = Grammars(self._tokenizer, vocab_size=self._runner.config.vocab_size)
        return self._grammars.constraint(request.grammar, request.calls)

    def _advance(self, sequence: Sequence, logits_V: torch.Tensor) -> Emission:
        """Choose the sequence's next token and end the request when it is the last."""
        request = sequence.request
        token = self._samplers[request.request_id].choose(logits_V)
        logprobs: Logprobs | None = None
        if request.sampling.top_logprobs is not None:
            top, asked = request.sampling.top_logprobs, request.sampling.asked_tokens
            logprobs = logprobs_of(logits_V, chosen=token, top=top, asked=asked)
        sequence.tokens.append(token)
        return self._emit(sequence, token, logprobs)

    def _emit(self, sequence: Sequence, token: int, logprobs: Logprobs | None) -> Emission:
        """Report the last known token and end the request when nothing follows."""
        request = sequence.request
        finish: FinishCause | None = None
        if token in request.stop_ids or self._samplers[request.request_id].finished:
            finish = "stop"
        elif sequence.generated - sequence.unread >= request.max_tokens:
            finish = "length"
        cached = sequence.cached_tokens
        if finish:
            self.abort(request.request_id)
        return Emission(request.request_id, token, finish, logprobs, cached)
