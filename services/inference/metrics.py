"""What every provider's requests are measured by, as Prometheus metrics.

Where OpenTelemetry's conventions for generative AI have a metric or an attribute, its name is used, in Prometheus'
spelling: `gen_ai.server.time_to_first_token` in seconds is `gen_ai_server_time_to_first_token_seconds`.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol, Self, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from llamastack import v1
from services.inference.provider import Answer, Facts, Provider, Report, Sink, Work
from services.runtime.calls import note
from stack_client.errors import StackError

T = TypeVar("T")

MODEL = "gen_ai_request_model"
LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", MODEL)
FIRST_TOKEN_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60,
)  # fmt: skip
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)
QUEUE_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REQUEST_SECONDS = (0.001, 0.01, 0.04, 0.16, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 300)

Key = tuple[str, str, str]
"""Values of `LABELS`."""


class TokenGaps(Collector):
    """A histogram that is written once per token, which the library's own, with its locks, would make dear."""

    def __init__(self) -> None:
        self._counts: dict[Key, list[int]] = {}
        self._sums: dict[Key, float] = {}

    def add(self, key: Key, counts: Sequence[int], total: float) -> None:
        """Add one answer's gaps: how many fell below each of `TOKEN_SECONDS`, how many above, their sum."""
        before = self._counts.get(key, [0] * len(counts))
        self._counts[key] = [a + b for a, b in zip(before, counts, strict=True)]
        self._sums[key] = self._sums.get(key, 0.0) + total

    def forget(self, model: str) -> None:
        """Drop what was measured of a model."""
        for key in [key for key in self._counts if key[2] == model]:
            del self._counts[key], self._sums[key]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Called for every scrape."""
        family = HistogramMetricFamily(
            "inference_inter_token_seconds", "Seconds between two tokens of an answer.", labels=LABELS
        )
        for key, counts in self._counts.items():
            below, buckets = 0, []
            for bound, count in zip((*map(str, map(float, TOKEN_SECONDS)), "+Inf"), counts, strict=True):
                below += count
                buckets.append((bound, below))
            family.add_metric(key, buckets, self._sums[key])
        yield family


class InferenceMetrics:
    """The metrics of a node's requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Seconds from a request's arrival to its first token or tool call.",
            LABELS,
            buckets=FIRST_TOKEN_SECONDS,
            registry=registry,
        )
        self.per_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Mean seconds per token after the first, one observation per answer of two tokens or more.",
            LABELS,
            buckets=TOKEN_SECONDS,
            registry=registry,
        )
        self.duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "Seconds from a request's arrival to its end.",
            LABELS,
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        self.requests = Counter(
            "inference_requests",
            "Requests that ended, by finish reason, `cancelled`, or the reason of the error. n answers count n times.",
            [*LABELS, "outcome"],
            registry=registry,
        )
        self.tokens = Counter(
            "inference_tokens",
            "Tokens read (input; of these from the prefix cache: cached) and written (output).",
            [*LABELS, "gen_ai_token_type"],
            registry=registry,
        )
        self.texts = Counter("inference_embedded_texts", "Texts turned into vectors.", LABELS, registry=registry)
        self.classified = Counter("inference_classified_texts", "Texts put into classes.", LABELS, registry=registry)
        self.reranked = Counter("inference_reranked_items", "Items scored against a query.", LABELS, registry=registry)
        self.queue = Histogram(
            "inference_queue_seconds",
            "Seconds from a request's arrival in our engine to its first step.",
            [MODEL],
            buckets=QUEUE_SECONDS,
            registry=registry,
        )
        self.gaps = TokenGaps()
        registry.register(self.gaps)

    def forget(self, model: str) -> None:
        """Drop the series of a model that is gone, or a node that sees many come and go would keep them for ever."""
        counted = (self.requests, self.tokens, self.texts, self.classified, self.reranked)
        measured = (self.first_token, self.per_token, self.duration, *counted, self.queue)
        for metric in measured:
            metric.remove_by_labels({MODEL: model})
        self.gaps.forget(model)


class UsedTokens(Protocol):
    """Told what each answer used; see `Telemetry.used_tokens`."""

    def __call__(self, *, model: str, provider: str, prompt: int, completion: int) -> None:
        """Record it."""


class MeasuredProvider:
    """A provider whose requests are measured."""

    def __init__(self, provider: Provider, *, name: str, metrics: InferenceMetrics, used: UsedTokens) -> None:
        self._provider = provider
        self._used = used
        self._name = name
        self._metrics = metrics

    async def __aenter__(self) -> Self:
        """Start the provider."""
        await self._provider.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop the provider."""
        await self._provider.__aexit__(*exc_info)

    @property
    def work(self) -> Work:
        """What the provider has in hand."""
        return self._provider.work

    async def load(self, model: v1.Model, report: Report) -> Facts:
        """Make a model ready."""
        return await self._provider.load(model, report)

    async def unload(self, model_id: str) -> None:
        """Free a model and drop its figures."""
        await self._provider.unload(model_id)
        self._metrics.forget(model_id)

    async def chat(self, request: v1.ChatCompletionRequest, sink: Sink) -> Answer:
        """Continue a dialog."""
        return await self._generate("chat", request.model_id, sink, lambda timed: self._provider.chat(request, timed))

    async def complete(self, request: v1.CompletionRequest, sink: Sink) -> Answer:
        """Continue a text."""
        return await self._generate(
            "text_completion", request.model_id, sink, lambda timed: self._provider.complete(request, timed)
        )

    async def embed(self, request: v1.EmbedRequest) -> v1.EmbedResponse:
        """Turn texts into vectors."""
        key = ("embeddings", self._name, request.model_id)
        response = await self._ended(key, self._provider.embed(request), lambda _: "stop")
        self._metrics.texts.labels(*key).inc(len(request.contents))
        self._metrics.tokens.labels(*key, "input").inc(response.usage.prompt_tokens)
        self._note(request.model_id, response.usage.prompt_tokens, 0)
        return response

    async def classify(self, request: v1.ClassifyRequest) -> v1.ClassifyResponse:
        """Put texts into classes."""
        key = ("classify", self._name, request.model_id)
        response = await self._ended(key, self._provider.classify(request), lambda _: "stop")
        self._metrics.classified.labels(*key).inc(len(request.texts))
        self._metrics.tokens.labels(*key, "input").inc(response.usage.prompt_tokens)
        self._note(request.model_id, response.usage.prompt_tokens, 0)
        return response

    async def rerank(self, request: v1.RerankRequest) -> v1.RerankResponse:
        """Score items against a query."""
        key = ("rerank", self._name, request.model)
        response = await self._ended(key, self._provider.rerank(request), lambda _: "stop")
        self._metrics.reranked.labels(*key).inc(len(request.items))
        return response

    async def tokenize(self, request: v1.TokenizeRequest) -> v1.TokenizeResponse:
        """Turn a text or a dialog into token ids."""
        return await self._provider.tokenize(request)

    async def detokenize(self, request: v1.DetokenizeRequest) -> v1.DetokenizeResponse:
        """Turn token ids into text."""
        return await self._provider.detokenize(request)

    async def _generate(
        self, operation: str, model: str, sink: Sink, generate: Callable[[Sink], Awaitable[Answer]]
    ) -> Answer:
        key = (operation, self._name, model)
        timed = TimedSink(sink)
        try:
            answer = await self._ended(key, generate(timed), _finish)
        finally:
            timed.record(key, self._metrics)
        for kind, count in (
            ("input", answer.prompt_tokens), ("cached", answer.cached_tokens), ("output", answer.completion_tokens),
        ):  # fmt: skip
            self._metrics.tokens.labels(*key, kind).inc(count)
        self._note(model, answer.prompt_tokens, answer.completion_tokens)
        return answer

    def _note(self, model: str, prompt: int, completion: int) -> None:
        """Say in the call's span, and to the telemetry service, what an answer used."""
        note(gen_ai__request__model=model, gen_ai__provider__name=self._name)
        note(gen_ai__usage__input_tokens=prompt, gen_ai__usage__output_tokens=completion)
        self._used(model=model, provider=self._name, prompt=prompt, completion=completion)

    async def _ended(self, key: Key, work: Awaitable[T], outcome: Callable[[T], str]) -> T:
        """Wait for the work; count its outcome and its time, however it ends."""
        started, ended = time.perf_counter(), "internal"
        try:
            result = await work
            ended = outcome(result)
            return result
        except asyncio.CancelledError:
            ended = "cancelled"
            raise
        except StackError as error:
            ended = error.reason.lower()
            raise
        finally:
            self._metrics.duration.labels(*key).observe(time.perf_counter() - started)
            self._metrics.requests.labels(*key, ended).inc()


class TimedSink:
    """A `Sink` before the real one that notes when tokens come."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._started = time.perf_counter()
        self._first: float | None = None
        self._last = 0.0
        self._counts = [0] * (len(TOKEN_SECONDS) + 1)

    def admitted(self) -> None:
        """Pass the news on."""
        self._sink.admitted()

    def text(self, text: str, *, tokens: int, logprobs: Sequence[v1.TokenLogProbs] = ()) -> None:
        """Note the time and pass text on. Tokens that come at once share the time since the one before."""
        if tokens:
            now = time.perf_counter()
            if self._first is None:
                self._first = now
            else:
                self._counts[bisect_left(TOKEN_SECONDS, (now - self._last) / tokens)] += tokens
            self._last = now
        self._sink.text(text, tokens=tokens, logprobs=logprobs)

    def tool_call(self, call: v1.ToolCall) -> None:
        """Pass a call on; it may be the first that is seen of an answer."""
        if self._first is None:
            self._first = self._last = time.perf_counter()
        self._sink.tool_call(call)

    def record(self, key: Key, metrics: InferenceMetrics) -> None:
        """Write what was noted."""
        if self._first is None:
            return
        metrics.first_token.labels(*key).observe(self._first - self._started)
        later = sum(self._counts)
        if later:
            total = self._last - self._first
            metrics.gaps.add(key, self._counts, total)
            metrics.per_token.labels(*key).observe(total / later)


def _finish(answer: Answer) -> str:
    return v1.FinishReason.Name(answer.finish_reason).removeprefix("FINISH_REASON_").lower()
