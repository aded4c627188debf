"""Text to token ids and back: Llama 3's tiktoken file, and any byte-level BPE `tokenizer.json`.

One rule guards every prompt: text that looks like a special token is ordinary text, unless the caller passes
`special=True` for text it wrote itself.
"""

import base64
import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import tiktoken
import tokenizers

from services.llama.errors import TokenizerError

# Llama 3's pre-tokenizer: contractions, words, up to three digits, punctuation, blank runs (llama-models, tokenizer).
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Llama 3 encodes at most this many characters at a time: tiktoken's regex overflows its stack on much longer texts.
_MAX_PIECE = 400_000
# ... and at most this many blanks, or non-blanks, in a row: merging one run takes time in the square of its length.
_MAX_RUN = 25_000
_LLAMA3_NAMED = (
    "begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1", "finetune_right_pad_id",
    "step_id", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag", "image",
)  # fmt: skip
_LLAMA3_SPECIALS = 256
# Tokens that end an answer, in whichever of the families a tokenizer belongs to.
_END_NAMES = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|im_end|>", "<|endoftext|>", "</s>")
_BEGIN_NAMES = ("<|begin_of_text|>", "<s>")


class Tokenizer(Protocol):
    """What the rest of the project needs of a tokenizer. All of it is safe to call from several threads."""

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to this, exclusive; special tokens included."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token that begins a document, or None where the family has none."""
        ...

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every token that ends a message, a turn or a document."""
        ...

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Special (control) tokens by their written form."""
        ...

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`, nothing added. Only with `special` do written special tokens become their ids."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special tokens are left out and malformed UTF-8 becomes U+FFFD."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes a token stands for; empty for special tokens and for ids nothing was assigned to."""
        ...

    def special_id(self, name: str) -> int:
        """Id of a special token by its written form; `TokenizerError` where there is none."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a special (control) token."""
        ...

    def split_special(self, text: str) -> Iterator[int | str]:
        """Cut `text` at its written special tokens: their ids, and the stretches of ordinary text between them."""
        ...


class _Shared:
    """What both implementations do alike, given the table of special tokens."""

    def __init__(self, special_tokens: dict[str, int], *, pattern: str | None = None) -> None:
        self.special_tokens: Mapping[str, int] = special_tokens
        self._special_ids = frozenset(special_tokens.values())
        # Longest first, so that no token hides a longer one that begins with it.
        names = sorted(special_tokens, key=len, reverse=True)
        self._special = re.compile(pattern or "|".join(map(re.escape, names)) or r"(?!)")
        self.bos_id = next((special_tokens[name] for name in _BEGIN_NAMES if name in special_tokens), None)
        self.eos_ids = frozenset(special_tokens[name] for name in _END_NAMES if name in special_tokens)

    def special_id(self, name: str) -> int:
        if name not in self.special_tokens:
            raise TokenizerError(f"this tokenizer has no special token {name!r}; it has {list(self.special_tokens)}")
        return self.special_tokens[name]

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    def split_special(self, text: str) -> Iterator[int | str]:
        start = 0
        for match in self._special.finditer(text):
            if match.start() > start:
                yield text[start : match.start()]
            # Some entries swallow the blanks around them (`_strip_pattern`): then the match is wider than the name.
            name = match.group() if match.group() in self.special_tokens else match.group().strip()
            yield self.special_tokens[name]
            start = match.end()
        if start < len(text):
            yield text[start:]

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        if not special:
            return self._encode_ordinary(text)
        ids: list[int] = []
        for piece in self.split_special(text):
            ids.extend([piece] if isinstance(piece, int) else self._encode_ordinary(piece))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def _encode_ordinary(self, text: str) -> list[int]:
        raise NotImplementedError

    def token_bytes(self, token_id: int) -> bytes:
        raise NotImplementedError


class TiktokenTokenizer(_Shared):
    """Llama 3's `tokenizer.model`: ranked byte strings, one a line, then 256 special tokens; see `Tokenizer`.

    Raises:
        TokenizerError: the file is not of that kind; names file and line.
    """

    def __init__(self, path: Path) -> None:
        ranks = _read_ranks(path)
        reserved = (f"reserved_special_token_{2 + i}" for i in range(_LLAMA3_SPECIALS - len(_LLAMA3_NAMED)))
        names = [f"<|{name}|>" for name in (*_LLAMA3_NAMED, *reserved)]
        super().__init__({name: len(ranks) + i for i, name in enumerate(names)})
        self.vocab_size = len(ranks) + len(names)
        self._encoding = tiktoken.Encoding(
            name=path.name, pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens=dict(self.special_tokens)
        )

    def _encode_ordinary(self, text: str) -> list[int]:
        ids: list[int] = []
        for start in range(0, len(text), _MAX_PIECE):
            for piece in _bounded_runs(text[start : start + _MAX_PIECE]):
                ids.extend(self._encoding.encode_ordinary(piece))
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        if self.is_special(token_id) or not 0 <= token_id < self.vocab_size:
            return b""
        raw: bytes = self._encoding.decode_single_token_bytes(token_id)
        return raw


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise TokenizerError(
                f"{path}, line {number}: no base64 token and rank there; this is no tiktoken model file"
            ) from error
    if sorted(ranks.values()) != list(range(len(ranks))) or not ranks:
        raise TokenizerError(f"{path}: ranks do not run from 0 without gaps; the file is incomplete")
    return ranks


def _bounded_runs(text: str) -> Iterator[str]:
    """Cut `text` so that no part holds more than `_MAX_RUN` blanks, or non-blanks, in a row."""
    start = 0
    # A run that is exactly as long as the limit needs no cut after it: hence the look-ahead for one more of its kind.
    for match in _LONG_RUN.finditer(text):
        yield text[start : match.end()]
        start = match.end()
    yield text[start:]


def _blank_class() -> str:
    """Characters that `str.isspace` calls blank, which are a few more than the regex class."""
    return "".join(re.escape(chr(code)) for code in range(0x3001) if chr(code).isspace())


_BLANK = _blank_class()
_LONG_RUN = re.compile(rf"[{_BLANK}]{{{_MAX_RUN}}}(?=[{_BLANK}])|[^{_BLANK}]{{{_MAX_RUN}}}(?=[^{_BLANK}])")


class JsonTokenizer(_Shared):
    """A `tokenizer.json` of byte-level BPE (Llama 3, SmolLM2 and most of their age); see `Tokenizer`.

    Tokens that the file adds without calling them special (such as `<tool_call>` in some families) are words of the
    vocabulary and always recognised, as the reference library does.

    Args:
        path: the file.
        eos_ids: end tokens that the checkpoint's configuration names, besides those known by their written form.

    Raises:
        TokenizerError: the file cannot be read, or its tokens do not stand for bytes.
    """

    def __init__(self, path: Path, *, eos_ids: Iterable[int] = ()) -> None:
        try:
            spec = json.loads(path.read_text(encoding="utf-8"))
            self._model = tokenizers.Tokenizer.from_str(json.dumps(spec))
        except Exception as error:  # the library raises a bare Exception for a bad file
            raise TokenizerError(f"{path}: not a readable tokenizer.json: {error}") from error
        if '"ByteLevel"' not in json.dumps(spec.get("decoder")):
            raise TokenizerError(f"{path}: its decoder is not ByteLevel; only byte-level BPE tokenizers are supported")
        added = spec.get("added_tokens", [])
        special = [token for token in added if token["special"]]
        super().__init__({t["content"]: t["id"] for t in special}, pattern=_strip_pattern(special))
        self.eos_ids |= frozenset(eos_ids)
        self._added = {token["id"]: token["content"].encode() for token in added if not token["special"]}
        self._model.encode_special_tokens = True  # written special tokens are ordinary text to this instance
        self._model.no_truncation()
        self._model.no_padding()
        self.vocab_size = max(self._model.get_vocab(with_added_tokens=True).values()) + 1

    def _encode_ordinary(self, text: str) -> list[int]:
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        if self.is_special(token_id) or token_id < 0:
            return b""
        if token_id in self._added:
            return bytes(self._added[token_id])
        letters = self._model.id_to_token(token_id)
        if letters is None:
            return b""
        return bytes(BYTE_OF_LETTER[letter] for letter in str(letters))


def _strip_pattern(special: list[dict[str, object]]) -> str:
    """A regex of the special tokens, longest first, each with the blanks that its entry says it swallows."""
    parts = []
    for token in sorted(special, key=lambda token: len(str(token["content"])), reverse=True):
        left, right = r"\s*" if token.get("lstrip") else "", r"\s*" if token.get("rstrip") else ""
        parts.append(left + re.escape(str(token["content"])) + right)
    return "|".join(parts)


def _byte_letters() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable letter: itself, or the next free one from U+0100 (GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


BYTE_OF_LETTER: Mapping[str, int] = _byte_letters()


class IncrementalDecoder:
    """Turns a stream of ids into a stream of text, holding back the bytes of a character until it is whole.

    All pushes and the flush, joined, equal the decoding of all bytes at once with errors replaced by U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty for special tokens and inside a character."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was cut off, else nothing."""
        return self._decoder.decode(b"", final=True)
