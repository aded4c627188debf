"""Constrained decoding: which tokens may come next under a grammar (llguidance, MIT).

A grammar is a text in llguidance's own form, made by the service; here it is compiled for the model's vocabulary.

Shapes: V vocabulary, W words of 32 bits that cover it.
"""

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance._tokenizer import TokenizerWrapper  # the documented way to bring a tokenizer of one's own
from numpy.typing import NDArray
from torch import Tensor

from services.llama.tokenizer import Tokenizer

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

    def constraint(self, grammar: str) -> "Constraint":
        """The grammar at its beginning.

        Raises:
            ValueError: If it cannot be compiled.
        """
        matcher = self._compiled.pop(grammar, None)
        if matcher is None:
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
            if matcher.is_error():
                raise ValueError(f"the grammar cannot be compiled: {matcher.get_error()}")
        self._compiled[grammar] = matcher  # the most recently used one is last
        if len(self._compiled) > CACHED_GRAMMARS:
            del self._compiled[next(iter(self._compiled))]
        return Constraint(matcher.deep_copy(), vocab_size=self._vocab_size)


class Constraint:
    """One answer's place in its grammar."""

    def __init__(self, matcher: LLMatcher, *, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    @property
    def finished(self) -> bool:
        """Whether the answer is whole and nothing may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def mask(self) -> NDArray[np.int32]:
        """One bit per token, 1 where it may come next, the lowest bit of a word first."""
        words_W = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.int32)
        if self._matcher.is_error():
            raise ValueError(f"the grammar allows no further token: {self._matcher.get_error()}")
        return words_W

    def apply(self, logits_V: Tensor) -> Tensor:
        """The logits with everything that the grammar forbids at minus infinity."""
        bits = self.mask().view(np.uint8)
        allowed_V = torch.from_numpy(np.unpackbits(bits, count=self._vocab_size, bitorder="little"))
        return logits_V.masked_fill(allowed_V == 0, float("-inf"))

    def accept(self, token_id: int) -> None:
        """Move past a token that `apply` allowed."""
        if not self._matcher.consume_token(token_id):
            raise RuntimeError(f"token {token_id} is outside the grammar: {self._matcher.get_error()}")


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
