"""Cutting a document: the strategies, and pieces with their places and tokens."""

import logging
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from llamastack import v1
from services.memory.bank import Bank
from services.memory.cut.borders import LINE, WORD, ends, levels, sentences
from services.memory.cut.count import Tokens
from services.memory.cut.recursive import Span, cut_along
from services.memory.cut.semantic import Embed, cut_by_meaning
from services.memory.cut.windows import windows
from services.memory.text import Parsed, Piece, TokenCounter
from services.runtime.offload import offload
from stack_client.errors import InvalidArgumentError

_log = logging.getLogger(__name__)

Strategy = Literal["auto", "static", "sentences", "semantic"]
LEAST_SIZE, MOST_SIZE = 100, 4096
MIN_CHUNK = 16
STATIC_SIZE, STATIC_OVERLAP = 800, 400
CONTEXTUAL_SIZE, CONTEXTUAL_OVERLAP = 700, 400
DEFAULT_SIZE = 512


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How documents are cut."""

    strategy: Strategy = "auto"
    """`auto` along the document's structure, `static` in windows of tokens, `sentences`, or `semantic` where
    embeddings of neighbouring sentences differ."""
    size: int
    """Tokens of a piece at most."""
    overlap: int
    """Tokens shared with the piece before."""
    context_model: str | None = None
    """Chat model that writes a line of context for each piece; empty = the service's default, None = no context."""
    context_prompt: str = ""
    """Its instruction; empty = the service's own."""
    context_seconds: float = 60.0
    """Longest wait for one line."""
    context_at_once: int = 4
    """Lines written at once."""


async def cut(
    parsed: Parsed,
    *,
    tokens: TokenCounter,
    size: int,
    overlap: int,
    strategy: Strategy = "auto",
    embed: Embed | None = None,
) -> list[Piece]:
    """Cut a document into pieces that cover everything visible in it, each of at most `size` tokens.

    Only a single character that takes more tokens than `size` is longer.

    Args:
        parsed: The document.
        tokens: Where its tokens lie for the embedding model.
        size: Tokens of a piece at most; for all but `static` not more than the model reads.
        overlap: Tokens shared with the piece before, below the size; `semantic` has none.
        strategy: See `Cutting`.
        embed: Embeddings of sentences, for `semantic`.

    Raises:
        InvalidArgumentError: If `semantic` has no embeddings.
        StackError: If tokens or embeddings cannot be had.
    """
    if strategy != "static" and size > tokens.window:
        size, overlap = tokens.window, min(overlap, tokens.window // 2)
    found = await Tokens.of(parsed.text, tokens)
    spans = await _spans(parsed, found, size=size, overlap=overlap, strategy=strategy, embed=embed)
    return [_piece(parsed, found, span) for span in spans]


def cutting_of(
    strategy: v1.ChunkingStrategy | None, bank: Bank, *, window: int, field: str = "chunking_strategy"
) -> Cutting:
    """What a request asks for, or the bank's parameters.

    Args:
        strategy: Of the request; None or unset means auto.
        bank: Its sizes count for auto.
        window: Tokens that the bank's model reads.
        field: Name of the request's field, for errors.

    Raises:
        InvalidArgumentError: If a number is out of range.
    """
    kind = strategy.WhichOneof("strategy") if strategy is not None else None
    if strategy is None or kind in {None, "auto"}:
        size, overlap = bank_sizes(bank, window=window)
        return Cutting(size=size, overlap=overlap)
    if kind == "static":
        static = strategy.static.static
        size, overlap = _sizes(static, STATIC_SIZE, STATIC_OVERLAP, field=f"{field}.static.static")
        if size > window:
            _log.warning(
                "chunks are larger than what the embedding model reads: the rest of each is found only by words",
                extra={"chunk_tokens": size, "window_tokens": window, "bank": bank.identifier},
            )
        return Cutting(strategy="static", size=size, overlap=overlap)
    if kind == "sentences":
        size, overlap = _piece_sizes(strategy.sentences.sentences, bank, window=window, field=f"{field}.sentences")
        return Cutting(strategy="sentences", size=size, overlap=overlap)
    if kind == "semantic":
        if bank.kind != "vector":
            message = f"{field}.semantic: bank {bank.identifier!r} has no embedding model; cut it at sentences"
            raise InvalidArgumentError(message, field=f"{field}.semantic")
        if strategy.semantic.semantic.chunk_overlap_tokens:
            path = f"{field}.semantic.semantic.chunk_overlap_tokens"
            raise InvalidArgumentError(f"{path}: pieces that are cut by meaning share none", field=path)
        size, _ = _piece_sizes(strategy.semantic.semantic, bank, window=window, field=f"{field}.semantic")
        return Cutting(strategy="semantic", size=size, overlap=0)
    contextual, field = strategy.contextual.contextual, f"{field}.contextual.contextual"
    size, overlap = _sizes(contextual, CONTEXTUAL_SIZE, CONTEXTUAL_OVERLAP, field=field)
    if size > window:
        overlap = overlap * window // size
        size = window
    at_once = contextual.max_concurrency if contextual.HasField("max_concurrency") else 4
    seconds = contextual.timeout_seconds if contextual.HasField("timeout_seconds") else 60
    if not 1 <= at_once <= 64:
        raise InvalidArgumentError(f"{field}.max_concurrency is {at_once}; allowed: 1 to 64", field=field)
    if seconds < 1:
        raise InvalidArgumentError(f"{field}.timeout_seconds is 0; give at least 1", field=field)
    return Cutting(
        size=size,
        overlap=overlap,
        context_model=contextual.model_id,
        context_prompt=contextual.context_prompt,
        context_seconds=float(seconds),
        context_at_once=at_once,
    )


def bank_sizes(bank: Bank, *, window: int) -> tuple[int, int]:
    """Size and overlap that a bank's parameters give, within what its model reads."""
    if bank.kind == "vector":
        params = bank.params.vector
        size, overlap = params.chunk_size_in_tokens, params.overlap_size_in_tokens
        if size > window:
            return window, overlap * window // size
        return size, overlap
    size = min(window, DEFAULT_SIZE)
    return size, size // 8


def _piece_sizes(config: v1.PieceSizes, bank: Bank, *, window: int, field: str) -> tuple[int, int]:
    size, overlap = bank_sizes(bank, window=window)
    if config.HasField("max_chunk_size_tokens"):
        size = config.max_chunk_size_tokens
        overlap = min(overlap, size // 2)
        if not MIN_CHUNK <= size <= MOST_SIZE:
            path = f"{field}.max_chunk_size_tokens"
            raise InvalidArgumentError(f"{path} is {size}; allowed: {MIN_CHUNK} to {MOST_SIZE}", field=path)
    if config.HasField("chunk_overlap_tokens"):
        overlap = config.chunk_overlap_tokens
    if overlap >= size:
        path = f"{field}.chunk_overlap_tokens"
        raise InvalidArgumentError(f"{path} is {overlap}; it must be below the size, {size}", field=path)
    return size, overlap


def _sizes(
    config: v1.StaticChunkingConfig | v1.ContextualChunkingConfig, size: int, overlap: int, *, field: str
) -> tuple[int, int]:
    if config.HasField("max_chunk_size_tokens"):
        size = config.max_chunk_size_tokens
        overlap = min(overlap, size // 2)
    if config.HasField("chunk_overlap_tokens"):
        overlap = config.chunk_overlap_tokens
    if not LEAST_SIZE <= size <= MOST_SIZE:
        path = f"{field}.max_chunk_size_tokens"
        raise InvalidArgumentError(f"{path} is {size}; allowed: {LEAST_SIZE} to {MOST_SIZE}", field=path)
    if overlap >= size:
        path = f"{field}.chunk_overlap_tokens"
        raise InvalidArgumentError(f"{path} is {overlap}; it must be below the size, {size}", field=path)
    return size, overlap


async def _spans(
    parsed: Parsed, tokens: Tokens, *, size: int, overlap: int, strategy: Strategy, embed: Embed | None
) -> Sequence[Span]:
    text = parsed.text
    match strategy:
        case "auto":
            return await offload(
                len(text), lambda: cut_along(parsed, tokens, levels(parsed), size=size, overlap=overlap)
            )
        case "static":
            return await offload(len(text), lambda: windows(text, tokens, size=size, overlap=overlap))
        case "sentences":
            borders = [sentences(text), ends(LINE, text), ends(WORD, text)]
            return await offload(len(text), lambda: cut_along(parsed, tokens, borders, size=size, overlap=overlap))
        case "semantic":
            if embed is None:
                raise InvalidArgumentError("semantic cutting needs embeddings; this bank has no embedding model")
            return await cut_by_meaning(parsed, tokens, embed, size=size)
    assert_never(strategy)


def _piece(parsed: Parsed, tokens: Tokens, span: Span) -> Piece:
    start, stop = span
    return Piece(
        text=parsed.text[start:stop],
        start=start,
        stop=stop,
        tokens=tokens.count(start, stop),
        page=bisect_right(parsed.pages, start) if parsed.pages else None,
    )
