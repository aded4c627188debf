"""What an inference provider is: it loads models and answers for them.

An implementation is one file in `providers/` with its configuration beside it and one line in `PROVIDERS`. It takes
the protos as they are, pushes the answer's pieces into a sink as they come, and returns the whole at the end. What it
cannot do it refuses with `UnsupportedError` naming the field. When its coroutine is cancelled it stops the work.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from llamastack import v1

Facts = dict[str, str | float | list[str]]
"""What a provider found out about a model."""

Report = Callable[[str], None]
"""Called with one line about what loading is doing; after loading, with why a model is away, and "" when it is back."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The end of a generation; its text is the sum of what went into the sink."""

    stop_reason: "v1.StopReason.ValueType"
    finish_reason: "v1.FinishReason.ValueType"
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Prompt tokens that were served from the prefix cache."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """How busy a provider is, for routers that choose between nodes."""

    running: int
    """Requests being answered."""
    waiting: int = 0
    """Requests accepted that wait for room."""
    held_tokens: int = 0
    """Tokens of the key/value cache that requests hold; 0 where that is not known."""


class Sink(Protocol):
    """Takes the pieces of an answer; never blocks."""

    def admitted(self) -> None:
        """The request is valid and accepted; called once, before any piece. What fails earlier has no stream."""

    def text(self, text: str, *, tokens: int, logprobs: Sequence[v1.TokenLogProbs] = ()) -> None:
        """More text: whole characters, made of `tokens` tokens; empty while the text of these is still held back."""

    def tool_call(self, call: v1.ToolCall) -> None:
        """A complete tool call."""


class Provider(Protocol):
    """Serves the models that are registered with it."""

    @property
    def work(self) -> Work:
        """How busy it is now."""

    async def __aenter__(self) -> Self:
        """Start what the models need, for example an engine process."""

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop it; requests in flight end with `UnavailableError`."""

    async def load(self, model: v1.Model, report: Report) -> Facts:
        """Make a model ready; returns facts for its metadata, for example `context_length`.

        An identifier `base@name` is a LoRA adapter; its base is loaded already.

        Raises:
            InvalidArgumentError: If there is no such folder or file, or it cannot be read.
            UnsupportedError: If the provider does not serve models of this type.
        """

    async def unload(self, model_id: str) -> None:
        """Free a model; its requests end with `UnavailableError`."""

    async def chat(self, request: v1.ChatCompletionRequest, sink: Sink) -> Answer:
        """Continue a dialog."""

    async def complete(self, request: v1.CompletionRequest, sink: Sink) -> Answer:
        """Continue a text."""

    async def embed(self, request: v1.EmbedRequest) -> v1.EmbedResponse:
        """Turn texts into vectors."""

    async def classify(self, request: v1.ClassifyRequest) -> v1.ClassifyResponse:
        """Put texts into classes; the request's ranges are checked (`validate.check_classify`)."""

    async def rerank(self, request: v1.RerankRequest) -> v1.RerankResponse:
        """Score items against a query; the request's ranges are checked (`validate.check_rerank`)."""

    async def tokenize(self, request: v1.TokenizeRequest) -> v1.TokenizeResponse:
        """Turn a text or a dialog into token ids."""

    async def detokenize(self, request: v1.DetokenizeRequest) -> v1.DetokenizeResponse:
        """Turn token ids into text."""
