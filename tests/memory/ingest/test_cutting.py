"""Cutting: everything is covered, nothing is too large, places are exact, borders are sensible."""

import itertools
import re
from collections.abc import Sequence
from typing import Any, cast, get_args

import numpy as np
import pytest
import semchunk
from hypothesis import given, settings
from hypothesis import strategies as st

from llamastack import v1
from services.memory.bank import Bank
from services.memory.chunks import Vector
from services.memory.cut.cutter import Cutting, Strategy, cut, cutting_of
from services.memory.embedder import pieces as word_pieces
from services.memory.text import Parsed, Piece, Structure
from stack_client.errors import InvalidArgumentError

TEXTS = st.text(
    alphabet=st.one_of(
        st.sampled_from("abc de\n\n\n.!?#-*|`~ \t(){}:;,0123äß中文。！"), st.characters(exclude_categories=["Cs"])
    ),
    max_size=600,
)
LINES = st.lists(
    st.sampled_from(
        ["# Head", "## Sub", "text of a paragraph. Another sentence!", "", "- item", "| a | b |", "```", "def f(x):",
         "    return x", "class C:", "@decorated", "a" * 90, "b" * 130, "Zwei Sätze. Und noch einer?"]
    ),
    max_size=60,
).map("\n".join)  # fmt: skip


class Words:
    """Counts runs of four letters."""

    def __init__(self, window: int = 10_000) -> None:
        self.window = window
        self.asked = 0

    async def offsets(self, text: str) -> Sequence[tuple[int, int]]:
        self.asked += 1
        return word_pieces(text)


class Bytes(Words):
    """Every byte of a character is a token, as for characters that a vocabulary lacks; spaces belong to words."""

    async def offsets(self, text: str) -> Sequence[tuple[int, int]]:
        return [(place, place + 1) for place, letter in enumerate(text) for _ in letter.encode()]


class GivesUp(Words):
    """Like WordPiece: a word of more than 100 characters is one token, whatever it is."""

    async def offsets(self, text: str) -> Sequence[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\S+", text)]


async def embed(texts: Sequence[str]) -> list[Vector]:
    vectors = []
    for text in texts:
        vector = np.array([1 + text.count(letter) for letter in "aeinst"], dtype=np.float32)
        vectors.append(vector / np.linalg.norm(vector))
    return vectors


def check(text: str, pieces: Sequence[Piece], *, size: int) -> None:
    covered = bytearray(len(text))
    for piece in pieces:
        assert piece.text == text[piece.start : piece.stop]
        assert piece.text.strip()
        assert piece.tokens <= size
        covered[piece.start : piece.stop] = b"\1" * (piece.stop - piece.start)
    assert all(covered[place] or letter.isspace() for place, letter in enumerate(text))
    starts = [piece.start for piece in pieces]
    assert starts == sorted(set(starts))


@pytest.mark.parametrize("strategy", get_args(Strategy))
@given(
    text=st.one_of(TEXTS, LINES),
    size=st.integers(16, 80),
    share=st.floats(0, 0.9),
    structure=st.sampled_from(get_args(Structure)),
    counter=st.sampled_from([Words(), Bytes(), GivesUp()]),
    pages=st.lists(st.integers(1, 600), max_size=4),
)
@settings(max_examples=150, deadline=None)
async def test_pieces_cover_everything_visible_and_none_is_too_large(  # noqa: PLR0917 (hypothesis gives them)
    strategy: Strategy, text: str, size: int, share: float, structure: Structure, counter: Words, pages: list[int]
) -> None:
    starts = [0, *sorted({page for page in pages if page < len(text)})] if pages else []
    parsed = Parsed(text=text, mime_type="text/plain", structure=structure, pages=starts)
    overlap = int(size * share)
    pieces = await cut(parsed, tokens=counter, size=size, overlap=overlap, strategy=strategy, embed=embed)
    check(text, pieces, size=size)


async def test_a_short_text_is_one_piece() -> None:
    [piece] = await cut(Parsed(text="  One line. \n", mime_type="text/plain"), tokens=Words(), size=20, overlap=5)
    assert (piece.text, piece.start, piece.page) == ("  One line.", 0, None)


async def test_nothing_visible_gives_no_pieces() -> None:
    for strategy in get_args(Strategy):
        pieces = await cut(
            Parsed(text=" \n\t ", mime_type="text/plain"),
            tokens=Words(),
            size=20,
            overlap=5,
            strategy=strategy,
            embed=embed,
        )
        assert pieces == []


async def test_markdown_is_cut_at_headings_and_not_inside_a_fence() -> None:
    body = "word " * 30
    text = f"# One\n\n{body}\n\n# Two\n\n```\n# no heading\n\n{body}\n```\n\n# Three\n\n{body}"
    parsed = Parsed(text=text, mime_type="text/markdown", structure="markdown")
    pieces = await cut(parsed, tokens=Words(), size=50, overlap=0)
    assert [piece.text.split("\n")[0] for piece in pieces] == ["# One", "# Two", "# Three"]


async def test_code_is_cut_at_definitions_with_their_decorators_and_comments() -> None:
    lines = [
        f"# about {name}\n@cached\ndef {name}(x):\n    y = x + 1\n\n    return y * {'x + ' * 8}1" for name in "abcd"
    ]
    parsed = Parsed(text="\n\n\n".join(lines), mime_type="text/x-source", structure="code", language="python")
    pieces = await cut(parsed, tokens=Words(), size=60, overlap=0)
    assert [piece.text.split("\n")[0] for piece in pieces] == [f"# about {name}" for name in "abcd"]


async def test_records_of_a_table_stay_whole() -> None:
    records = [f"name: person {number}\nage: {number}\ncity: some town" for number in range(40)]
    parsed = Parsed(text="\n\n".join(records), mime_type="text/csv", structure="table")
    pieces = await cut(parsed, tokens=Words(), size=60, overlap=0)
    assert len(pieces) > 1
    assert [record for piece in pieces for record in piece.text.split("\n\n")] == records


async def test_overlap_begins_with_a_whole_word_and_is_as_long_as_asked_at_most() -> None:
    text = " ".join(f"w{number:03d}" for number in range(500))
    pieces = await cut(Parsed(text=text, mime_type="text/plain"), tokens=Words(), size=64, overlap=16)
    for before, after in itertools.pairwise(pieces):
        shared = text[after.start : before.stop]
        assert 8 <= len(shared.split()) <= 16
        assert re.match(r"w\d{3}\b", after.text)


async def test_static_windows_have_the_size_asked_for_and_share_the_overlap() -> None:
    text = " ".join(f"w{number:03d}" for number in range(1000))
    pieces = await cut(
        Parsed(text=text, mime_type="text/plain"), tokens=Words(50), size=100, overlap=40, strategy="static"
    )
    assert {piece.tokens for piece in pieces[:-1]} == {100}, "an explicit size counts, also above the window"
    assert all(a.stop - b.start == 40 * 5 - 1 for a, b in itertools.pairwise(pieces))


async def test_auto_never_cuts_larger_than_the_model_reads() -> None:
    text = "One sentence of some words. " * 200
    pieces = await cut(Parsed(text=text, mime_type="text/plain"), tokens=Words(30), size=500, overlap=50)
    check(text, pieces, size=30)
    assert all(piece.text.endswith(".") for piece in pieces)


@pytest.mark.parametrize("strategy", get_args(Strategy))
@pytest.mark.parametrize(
    "text",
    ["x9A/" * 25_000, "ความจำ" * 10_000, "intro words " * 30 + "ab" * 9_000 + " end", ("a" * 99 + " ") * 400,
     "name: " + "f,;" * 20_000 + "\nnext: 1", "a" + " " * 50_000 + "b"],
    ids=["base64", "thai", "a long word", "words at the limit", "a long field", "space"],
)  # fmt: skip
async def test_text_without_spaces_becomes_small_pieces_although_its_tokenizer_gives_up(
    strategy: Strategy, text: str
) -> None:
    parsed = Parsed(text=text, mime_type="text/plain")
    pieces = await cut(parsed, tokens=GivesUp(), size=100, overlap=20, strategy=strategy, embed=embed)
    check(text, pieces, size=100)
    assert max(len(piece.text) for piece in pieces) <= 800
    assert len(pieces) <= len(text) // 250 + 2


async def test_abbreviations_end_no_sentence() -> None:
    text = "See Fig. 3 by Dr. Ada. It is fine. " * 20
    pieces = await cut(
        Parsed(text=text, mime_type="text/plain"), tokens=Words(), size=16, overlap=0, strategy="sentences"
    )
    assert all(piece.text.startswith(("See Fig.", "It is")) for piece in pieces)


async def test_semantic_cutting_breaks_where_the_matter_changes() -> None:
    first, second = "A cat and a cat sat. " * 10, "Testing nets in tents is tense. " * 10
    parsed = Parsed(text=first + second, mime_type="text/plain")
    pieces = await cut(parsed, tokens=Words(), size=400, overlap=0, strategy="semantic", embed=embed)
    assert any(piece.start == len(first) for piece in pieces)
    with pytest.raises(InvalidArgumentError, match="no embedding model"):
        await cut(parsed, tokens=Words(), size=40, overlap=0, strategy="semantic")


async def test_pieces_name_the_page_of_their_first_character() -> None:
    pages = ["First page. " * 10, "Second page. " * 10]
    starts = [0, len(pages[0]) + 2]
    parsed = Parsed(text="\n\n".join(pages), mime_type="application/pdf", pages=starts)
    pieces = await cut(parsed, tokens=Words(), size=30, overlap=0)
    assert {piece.page for piece in pieces} == {1, 2}
    assert all((piece.page == 2) == (piece.start >= starts[1]) for piece in pieces)


@pytest.mark.parametrize("strategy", sorted({*get_args(Strategy)} - {"static"}))
@pytest.mark.parametrize("structure", ["prose", "markdown"])
async def test_no_piece_reaches_over_the_end_of_a_page(strategy: Strategy, structure: Structure) -> None:
    pages = [f"## Page {number}\n\n" + "It has some words. " * (5 + number * 3) for number in range(1, 9)]
    starts = [0, *itertools.accumulate(len(page) + 2 for page in pages[:-1])]
    text = "\n\n".join(pages)
    parsed = Parsed(text=text, mime_type="application/pdf", pages=starts, structure=structure)
    for size in (30, 60, 500):
        pieces = await cut(parsed, tokens=Words(), size=size, overlap=size // 4, strategy=strategy, embed=embed)
        check(text, pieces, size=size)
        assert {piece.page for piece in pieces} == set(range(1, 9))
        assert all(piece.stop <= [*starts[1:], len(text)][(piece.page or 0) - 1] for piece in pieces)


async def test_a_page_of_a_few_words_goes_with_the_next() -> None:
    pages = ["Title", "", "Part one", "The first page of text. " * 8, "The second page of text. " * 8, "End"]
    starts = [0, *itertools.accumulate(len(page) + 2 for page in pages[:-1])]
    parsed = Parsed(text="\n\n".join(pages), mime_type="application/pdf", pages=starts)
    pieces = await cut(parsed, tokens=Words(), size=500, overlap=50)
    assert [(piece.page, piece.text.split()[0]) for piece in pieces] == [(1, "Title"), (5, "The"), (6, "End")]


async def test_a_long_text_is_asked_about_in_parts_and_counted_alike() -> None:
    text = "Some words of a line.\n" * 12_000
    counter = Words()
    pieces = await cut(Parsed(text=text, mime_type="text/plain"), tokens=counter, size=200, overlap=0)
    assert counter.asked == 3
    assert sum(piece.tokens for piece in pieces) == len(word_pieces(text))


async def test_no_more_pieces_than_semchunk_makes() -> None:
    sentence = "The quick brown fox, who was brown; jumped over it. It was (as they say) lazy!\n"
    text = "\n".join(sentence * (1 + number % 7) for number in range(120))
    pieces = await cut(Parsed(text=text, mime_type="text/plain"), tokens=Words(), size=100, overlap=0)
    chunker = cast("Any", semchunk).chunkerify(lambda part: len(word_pieces(part)), 100)
    assert len(pieces) <= len(chunker(text)) * 1.05
    check(text, pieces, size=100)


async def test_pieces_at_sentences_and_by_meaning_are_asked_for_by_the_strategy() -> None:
    params = v1.VectorBankParams(embedding_model="m", chunk_size_in_tokens=64, overlap_size_in_tokens=8)
    bank = Bank(
        number=1, tenant="", identifier="b", kind="vector", params=v1.BankParams(vector=params), provider_id="auto",
        provider_resource_id="b", display_name=None, embedding_model="m", embedding_dimension=16, embedding_stamp="m",
        revision=0, created_at=0, store=None, expires_at=None,
    )  # fmt: skip
    sentences = v1.ChunkingStrategy(sentences=v1.SentenceChunkingStrategy())
    assert cutting_of(sentences, bank, window=254) == Cutting(strategy="sentences", size=64, overlap=8)
    sized = v1.PieceSizes(max_chunk_size_tokens=40)
    semantic = v1.ChunkingStrategy(semantic=v1.SemanticChunkingStrategy(semantic=sized))
    assert cutting_of(semantic, bank, window=254) == Cutting(strategy="semantic", size=40, overlap=0)
    semantic.semantic.semantic.chunk_overlap_tokens = 4
    with pytest.raises(InvalidArgumentError, match="share none"):
        cutting_of(semantic, bank, window=254)
