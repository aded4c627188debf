"""From token ids to text: whole characters only, stop strings never shown, log probabilities beside their tokens."""

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.llama.tokenizer import IncrementalDecoder, Tokenizer

LogprobT = TypeVar("LogprobT")


@dataclass(frozen=True)
class TextPiece(Generic[LogprobT]):
    """Text that is final, with the log probabilities of the tokens whose text begins in it or before it."""

    text: str
    logprobs: list[LogprobT]
    stopped: bool
    """Whether a stop string was met: nothing comes after this piece."""


class TextStream(Generic[LogprobT]):
    """Decodes one answer.

    Text is held back only while it could still turn into a stop string or into a whole character.

    Args:
        tokenizer: Of the model.
        stop: Strings that end the answer, none empty.
    """

    def __init__(self, tokenizer: Tokenizer, *, stop: tuple[str, ...] = ()) -> None:
        self._decoder = IncrementalDecoder(tokenizer)
        self._stop = stop
        self._held = ""
        self._emitted = 0
        self._decoded = 0
        self._logprobs: deque[tuple[int, LogprobT]] = deque()

    def push(self, token_id: int, logprob: LogprobT | None = None) -> TextPiece[LogprobT]:
        """Take the next token; returns the text that has become final."""
        if logprob is not None:
            self._logprobs.append((self._decoded, logprob))
        return self._take(self._decoder.push(token_id), final=False)

    def finish(self) -> TextPiece[LogprobT]:
        """The text that is still held back; a cut character becomes U+FFFD."""
        return self._take(self._decoder.flush(), final=True)

    def _take(self, text: str, *, final: bool) -> TextPiece[LogprobT]:
        self._decoded += len(text)
        self._held += text
        # The stop string that is complete first ends the answer, so that it does not matter how the tokens fall.
        found = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            ready, self._held = self._held[: min(found)[1]], ""
            return self._piece(ready, stopped=True)
        keep = 0 if final else max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        ready, self._held = self._held[:cut], self._held[cut:]
        return self._piece(ready, stopped=False, everything=final)

    def _piece(self, text: str, *, stopped: bool, everything: bool = False) -> TextPiece[LogprobT]:
        self._emitted += len(text)
        logprobs = []
        # A token belongs to the piece once text from its start on has been shown; those inside a stop string never are.
        while self._logprobs and (everything or self._logprobs[0][0] < self._emitted):
            logprobs.append(self._logprobs.popleft()[1])
        return TextPiece(text, logprobs, stopped)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that ends `text`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
