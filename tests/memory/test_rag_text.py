"""Writing passages out for a prompt."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.memory.rag_text import DEFAULT_TEMPLATE, Passage, check_template, write_out
from services.memory.retrieve import Hit
from stack_client.errors import InvalidArgumentError


def passage(text: str, **row: Any) -> Passage:
    chunk = {"text": text, "chunk_id": "c", "document_id": "d", "source": "", "metadata": {}, **row}
    return Passage(hit=Hit(bank=None, chunk=chunk, score=1.0, ranks={}), text=text)  # type: ignore[arg-type]


async def words(text: str) -> int:
    return len(text.split())


@given(st.lists(st.text(alphabet="ab \n{}", max_size=40), max_size=6), st.integers(1, 200))
async def test_the_written_text_never_exceeds_its_tokens_and_loses_only_the_last_passages(
    texts: list[str], max_tokens: int
) -> None:
    passages = [passage(text) for text in texts]
    written = await write_out(passages, question="why?", template=DEFAULT_TEMPLATE, max_tokens=max_tokens, count=words)
    assert await words("".join(written.parts)) == written.tokens <= max_tokens
    assert list(written.passages) == passages[: len(written.passages)]
    more = await write_out(passages, question="why?", template=DEFAULT_TEMPLATE, max_tokens=10**6, count=words)
    assert len(more.passages) == len(texts)


async def test_braces_in_documents_are_text() -> None:
    written = await write_out(
        [passage("{metadata} and {index}", metadata={"a": "{chunk.content}"})],
        question="?",
        template="{index}: {chunk.content} ({metadata})",
        max_tokens=1000,
        count=words,
    )
    assert "1: {metadata} and {index} (" in written.parts[1]
    assert '"a": "{chunk.content}"' in written.parts[1]


def test_a_template_without_the_content_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"lacks \{chunk.content\}"):
        check_template("{index}", field="template")
