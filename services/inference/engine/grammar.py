"""Constrained decoding: which tokens may come next under a grammar (llguidance, MIT).

A grammar is a text in llguidance's own form, made by the service; here it is compiled for the model's vocabulary.

Shapes: V vocabulary, W words of 32 bits that cover it.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance._tokenizer import TokenizerWrapper  # the documented way to bring a tokenizer of one's own
from torch import Tensor

from services.inference.engine.request import Calls
from services.llama.tokenizer import Tokenizer

Bits = npt.NDArray[np.uint8]

CACHED_GRAMMARS = 64


class Grammars:
    """Compiles grammars for one vocabulary; repeated ones are copied from a small cache.

    Args:
        tokenizer: Of the model.
        vocab_size: Rows of the model's output, which may be more than the tokenizer's tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer)), n_vocab=vocab_size, eos_token=sorted(tokenizer.eos_ids)
        )
        self._compiled: dict[str, LLMatcher] = {}

    def constraint(self, grammar: str, calls: Calls | None) -> "Constraint":
        """What a request asks for, at its beginning: a grammar for text (empty: any), and calls instead of text.

        Raises:
            ValueError: If a grammar cannot be compiled.
        """
        if calls is None:
            return self._place(grammar)
        return CallsOrText(
            self._place(calls.calls),
            self._place(calls.text),
            self._place(grammar) if grammar else None,
            vocab_size=self._vocab_size,
        )

    def _place(self, grammar: str) -> "Place":
        """The grammar at its beginning."""
        matcher = self._compiled.pop(grammar, None)
        if matcher is None:
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
            if matcher.is_error():
                raise ValueError(f"the grammar cannot be compiled: {matcher.get_error()}")
        self._compiled[grammar] = matcher  # the most recently used one is last
        if len(self._compiled) > CACHED_GRAMMARS:
            del self._compiled[next(iter(self._compiled))]
        return Place(matcher.deep_copy(), vocab_size=self._vocab_size)


class Constraint(Protocol):
    """One answer's place in what it must look like."""

    @property
    def finished(self) -> bool:
        """Whether the answer is whole and nothing may follow."""
        ...

    def mask(self) -> Bits | None:
        """One bit per token that may come next, the lowest bit of a byte first, in whole words of 32; None for all.

        Raises:
            ValueError: If nothing is allowed.
        """
        ...

    def apply(self, logits_V: Tensor) -> Tensor:
        """The logits with everything that is forbidden at minus infinity.

        Raises:
            ValueError: If nothing is allowed.
        """
        ...

    def accept(self, token_id: int) -> None:
        """Move past a token that `apply` allowed."""
        ...


class Place:
    """An answer's place in one grammar."""

    def __init__(self, matcher: LLMatcher, *, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    @property
    def finished(self) -> bool:
        """Whether the answer is whole and nothing may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def mask(self) -> Bits:
        """See `Constraint`."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise ValueError(f"the grammar allows no further token: {self._matcher.get_error()}")
        return bits

    def apply(self, logits_V: Tensor) -> Tensor:
        """See `Constraint`."""
        return _masked(logits_V, self.mask(), vocab_size=self._vocab_size)

    def accept(self, token_id: int) -> None:
        """See `Constraint`."""
        if not self.follow(token_id):
            raise RuntimeError(f"token {token_id} is outside the grammar: {self._matcher.get_error()}")

    def follow(self, token_id: int) -> bool:
        """Move past a token; False when the grammar does not allow it, after which the place is lost."""
        moved: bool = self._matcher.consume_token(token_id)
        return moved


class CallsOrText:
    """An answer that may be calls or text, until it can only be one of the two.

    Text is masked no longer than it could still become a call, unless it has a form of its own.

    Args:
        calls: The beginning of calls.
        text: The beginning of text that is no call.
        form: The beginning of what text must look like; None for any.
        vocab_size: Columns of the logits.
    """

    def __init__(self, calls: Place, text: Place, form: Place | None, *, vocab_size: int) -> None:
        self._calls: Place | None = calls
        self._text: Place | None = text
        self._form = form
        self._vocab_size = vocab_size

    @property
    def finished(self) -> bool:
        """See `Constraint`."""
        left = self._calls or self._form
        return left is not None and self._text is None and left.finished

    def apply(self, logits_V: Tensor) -> Tensor:
        """See `Constraint`."""
        bits = self.mask()
        return logits_V if bits is None else _masked(logits_V, bits, vocab_size=self._vocab_size)

    def mask(self) -> Bits | None:
        """See `Constraint`."""
        if self._calls is None:
            return None if self._form is None else self._form.mask()
        if self._text is None:
            return self._calls.mask()
        text = self._text.mask()
        if self._form is not None:
            text = text & self._form.mask()
        return text | self._calls.mask()

    def accept(self, token_id: int) -> None:
        """See `Constraint`."""
        if self._calls is not None and not self._calls.follow(token_id):
            self._calls = self._text = None  # text for good: it needs no watching
            if self._form is not None:
                self._form.accept(token_id)
        elif self._calls is not None:
            of_text = self._text is not None and self._text.follow(token_id)
            if not of_text or (self._form is not None and not self._form.follow(token_id)):
                self._text = self._form = None  # a call for good
        elif self._form is not None:
            self._form.accept(token_id)


def _masked(logits_V: Tensor, bits: Bits, *, vocab_size: int) -> Tensor:
    # numpy, since torch would share so little work out to all its threads, which costs more than the work.
    allowed_V = np.unpackbits(bits, count=vocab_size, bitorder="little").view(np.bool_)
    return torch.from_numpy(np.where(allowed_V, logits_V.numpy(), np.float32("-inf")))


class _Vocabulary:
    """A tokenizer in the form that llguidance reads: special tokens carry a byte that no text has."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        names = {token_id: name for name, token_id in tokenizer.special_tokens.items()}
        self.eos_token_id = min(tokenizer.eos_ids)
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = sorted(names)
        self.tokens = [
            b"\xff" + names[token_id].encode() if token_id in names else tokenizer.token_bytes(token_id)
            for token_id in range(tokenizer.vocab_size)
        ]
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        """Token ids of ordinary text."""
        return self._tokenizer.encode(text.decode() if isinstance(text, bytes) else text)
