"""Tokenizers of encoders: a `tokenizer.json`, or the SentencePiece model of DeBERTa-v2 where there is none.

Special tokens that are written out in a text are ordinary text: whoever writes to a guard cannot forge its frame.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tokenizers import Tokenizer

from stack_client.errors import InvalidArgumentError


class Encoded(NamedTuple):
    """A text as tokens, without the special tokens around it."""

    ids: list[int]
    spans: list[tuple[int, int]]
    """First character of each token and one past its last, in Unicode code points."""


class PairFrame(NamedTuple):
    """Special tokens around two texts that are read together."""

    before: Sequence[int]
    between: Sequence[int]
    after: Sequence[int]
    second_type: int
    """Token type of the second text and what follows it; all before it has 0."""


class EncoderTokenizer(Protocol):
    """What classifiers and rerank models need of their tokenizer."""

    before: Sequence[int]
    """Special tokens before a text."""
    after: Sequence[int]
    """Special tokens after it."""
    size: int
    """Ids run from 0 to this, exclusive."""
    pair: PairFrame | None
    """How two texts are joined; None where that is not known."""

    def encode(self, text: str) -> Encoded:
        """Tokens of a text, in which special tokens are ordinary text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens by their names."""


class JsonEncoderTokenizer:
    """A `tokenizer.json`, without the truncation and padding that it may ask for.

    Raises:
        InvalidArgumentError: If it adds no special tokens.
    """

    def __init__(self, file: Path) -> None:
        self._model: Tokenizer = Tokenizer.from_file(str(file))
        self._model.no_truncation()
        self._model.no_padding()
        framed = self._model.encode("a")
        special = framed.special_tokens_mask
        head = special.index(0) if 0 in special else 0
        tail = special[::-1].index(0) if 0 in special else 0
        self.before: Sequence[int] = framed.ids[:head]
        self.after: Sequence[int] = framed.ids[len(special) - tail :]
        if not self.before:
            message = f"{file}: it puts no special token before a text, which encoders read their classes from"
            raise InvalidArgumentError(message, field="provider_model_id")
        self.pair: PairFrame | None = _pair_frame(self._model)
        self._model.encode_special_tokens = True
        self.size: int = max(self._model.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> Encoded:
        """See `EncoderTokenizer.encode`."""
        encoding = self._model.encode(text, add_special_tokens=False)
        return Encoded(encoding.ids, encoding.offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """See `EncoderTokenizer.decode`."""
        return str(self._model.decode(list(ids), skip_special_tokens=False))


class SentencePieceTokenizer:
    """DeBERTa-v2's `spm.model`: `[CLS]` before a text, `[SEP]` after it; normalised as the model itself says.

    Raises:
        InvalidArgumentError: If the SentencePiece library is missing, the file is damaged, or asks for a preparation
            of texts that is not implemented.
    """

    def __init__(self, folder: Path) -> None:
        settings = _read(folder / "tokenizer_config.json")
        for name in ("do_lower_case", "split_by_punct"):
            if settings.get(name):
                message = f"{folder}: {name} needs a tokenizer.json; make one from spm.model with transformers"
                raise InvalidArgumentError(message, field="provider_model_id")
        self._model = _sentencepiece(folder / "spm.model")
        pieces = {self._model.id_to_piece(index): index for index in range(self._model.vocab_size())}
        added = _read(folder / "added_tokens.json")
        names = {key: _name(settings.get(f"{key}_token"), f"[{key.upper()}]") for key in ("cls", "sep", "pad", "mask")}
        found: dict[str, int | None] = {key: pieces.get(name, added.get(name)) for key, name in names.items()}
        self._names = {index: names[key] for key, index in found.items() if index is not None}
        for key in ("cls", "sep"):
            if found[key] is None:
                message = f"{folder}: neither spm.model nor added_tokens.json has the token {names[key]!r}"
                raise InvalidArgumentError(message, field="provider_model_id")
        self.before: Sequence[int] = [index for index in (found["cls"],) if index is not None]
        self.after: Sequence[int] = [index for index in (found["sep"],) if index is not None]
        self.pair: PairFrame | None = PairFrame(self.before, self.after, self.after, 1)
        self._unknown: int = self._model.unk_id()
        self.size: int = max([len(pieces) - 1, *self._names]) + 1

    def encode(self, text: str) -> Encoded:
        """See `EncoderTokenizer.encode`; a special token that the model has as a word becomes the unknown token."""
        mapping: dict[str, Any] = self._model.encode(text, return_type="offset_mapping")
        ids = [self._unknown if index in self._names else index for index in mapping["ids"]]
        return Encoded(ids, mapping["offsets"])

    def decode(self, ids: Sequence[int]) -> str:
        """See `EncoderTokenizer.decode`."""
        parts: list[str] = []
        ordinary: list[int] = []
        for index in [*ids, None]:
            if index is not None and index not in self._names:
                ordinary.append(index)
                continue
            if ordinary:
                parts.append(self._model.decode(ordinary))
                ordinary = []
            if index is not None:
                parts.append(self._names[index])
        return " ".join(parts)


def encoder_tokenizer(folder: Path) -> EncoderTokenizer:
    """The tokenizer of a folder.

    Raises:
        InvalidArgumentError: If there is none.
    """
    if (folder / "tokenizer.json").exists():
        return JsonEncoderTokenizer(folder / "tokenizer.json")
    if (folder / "spm.model").exists():
        return SentencePieceTokenizer(folder)
    message = f"{folder}: no tokenizer.json and no spm.model; copy the model's own beside its weights"
    raise InvalidArgumentError(message, field="provider_model_id")


def _pair_frame(tokenizer: Tokenizer) -> PairFrame | None:
    """What a tokenizer puts around two texts; None if it is no frame, or has token types in another order."""
    joined = tokenizer.encode("a", "a")
    owners, types = joined.sequence_ids, joined.type_ids
    if 0 not in owners or 1 not in owners:
        return None
    first, second, end = owners.index(0), owners.index(1), len(owners) - owners[::-1].index(1)
    stop = second - owners[:second][::-1].index(0)
    expected = [0] * second + [types[second]] * (len(types) - second)
    if first == 0 or stop == second or types != expected or types[second] not in {0, 1}:
        return None
    return PairFrame(joined.ids[:first], joined.ids[stop:second], joined.ids[end:], types[second])


def _sentencepiece(file: Path) -> Any:  # noqa: ANN401 (the library has no types)
    try:
        import sentencepiece  # noqa: PLC0415 - only these models need it
    except ImportError as error:
        message = f"{file} needs the SentencePiece library: pip install 'llama-stack-mesh[inference]'"
        raise InvalidArgumentError(message, field="provider_model_id") from error
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        message = f"{file}: no SentencePiece model ({error}); fetch it again"
        raise InvalidArgumentError(message, field="provider_model_id") from error


def _name(entry: object, otherwise: str) -> str:
    """Settings write a token as its text, or as an object around it."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return str(text or otherwise)


def _read(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return values
