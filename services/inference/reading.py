"""Reading one answer of the engine: tokens become text, log probabilities and an end for the sink."""

from collections.abc import Callable

from llamastack import v1
from services.inference.engine.request import Emission, Sampling
from services.inference.provider import Answer, Sink
from services.inference.text_stream import TextPiece, TextStream
from services.llama.tokenizer import Tokenizer
from services.llama.tool_formats import TOOL_FAMILIES

PYTHON_TAGS = frozenset(family.python_tag for family in TOOL_FAMILIES.values()) - {""}  # they open built-in calls, code


def python_tag_of(tokenizer: Tokenizer) -> int | None:
    """Id of the token that opens built-in calls and code, where the vocabulary has one."""
    return next((tokenizer.special_tokens[tag] for tag in PYTHON_TAGS if tag in tokenizer.special_tokens), None)


class Reading:
    """Turns one request's tokens into text for the sink."""

    def __init__(self, tokenizer: Tokenizer, *, stop: tuple[str, ...], sink: Sink, sampling: Sampling) -> None:
        self._tokenizer = tokenizer
        self._text: TextStream[v1.TokenLogProbs] = TextStream(tokenizer, stop=stop)
        self._sink = sink
        self._wants_logprobs = sampling.top_logprobs is not None
        self._asked = sampling.asked_tokens
        self._tokens = 0
        self._cached = 0
        self._finish: str | None = None
        self.stopped = False
        self.on_stop: Callable[[], object] = lambda: None
        self.on_python_tag: Callable[[], object] = lambda: None
        self._python_tag = python_tag_of(tokenizer)

    def on_token(self, emission: Emission) -> None:
        """Take one token; called by the engine client."""
        if self.stopped:
            return
        self._tokens += 1
        self._finish = emission.finish
        self._cached = emission.cached_tokens
        if emission.token_id == self._python_tag:
            self.on_python_tag()
        if emission.token_id not in self._tokenizer.eos_ids:
            logprobs = self._logprobs(emission) if self._wants_logprobs else None
            self._push(self._text.push(emission.token_id, logprobs))
        if emission.finish and not self.stopped:
            self._push(self._text.finish())
        if self._asked and emission.token_id in self._tokenizer.eos_ids:
            # The end is no text, but what was asked about its position is an answer of its own.
            self._sink.text("", tokens=0, logprobs=[self._logprobs(emission)])

    def stop(self) -> None:
        """End the answer here, as a stop string does."""
        self.stopped = True
        self.on_stop()

    def answer(self, *, prompt_tokens: int) -> Answer:
        """How the answer ended."""
        cut = self._finish == "length" and not self.stopped
        return Answer(
            stop_reason=v1.STOP_REASON_OUT_OF_TOKENS if cut else v1.STOP_REASON_END_OF_TURN,
            finish_reason=v1.FINISH_REASON_LENGTH if cut else v1.FINISH_REASON_STOP,
            prompt_tokens=prompt_tokens,
            completion_tokens=self._tokens,
            cached_tokens=self._cached,
        )

    def _push(self, piece: TextPiece[v1.TokenLogProbs]) -> None:
        self._sink.text(piece.text, tokens=1, logprobs=piece.logprobs)
        if piece.stopped and not self.stopped:
            self.stop()

    def _logprobs(self, emission: Emission) -> v1.TokenLogProbs:
        assert emission.logprobs is not None
        chosen = self._token(emission.token_id, emission.logprobs.chosen)
        top = [self._token(token_id, logprob) for token_id, logprob in emission.logprobs.top]
        by_token = {entry.token: entry.logprob for entry in reversed([chosen, *top])}
        pairs = zip(self._asked, emission.logprobs.asked, strict=True)
        asked = [self._token(token_id, logprob) for token_id, logprob in pairs]
        return v1.TokenLogProbs(logprobs_by_token=by_token, chosen=chosen, top=top, asked=asked)

    def _token(self, token_id: int, logprob: float) -> v1.TokenLogProb:
        raw = self._tokenizer.token_bytes(token_id)
        text = raw.decode(errors="replace") or self._tokenizer.decode([token_id])
        return v1.TokenLogProb(token=text, token_id=token_id, bytes=raw, logprob=logprob)
