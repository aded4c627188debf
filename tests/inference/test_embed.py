"""Embeddings of the real all-MiniLM-L6-v2."""

import math

import pytest

from llamastack import v1
from services.inference.packaged import find_packaged
from stack_client.errors import InvalidArgumentError
from tests.inference.conftest import Node

MODEL = "all-minilm-l6-v2"


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


async def test_vectors_have_length_one_and_near_meanings_lie_near(real: Node) -> None:
    cat, kitten, budget = await real.client.inference.embed(
        MODEL, ["A cat sits on the mat.", "A kitten rests on the rug.", "The parliament passed the budget."]
    )
    assert len(cat) == 384
    assert math.isclose(cosine(cat, cat), 1.0, abs_tol=1e-5)
    assert cosine(cat, kitten) > cosine(cat, budget) + 0.3


async def test_a_text_gets_the_same_vector_alone_and_among_longer_ones(real: Node) -> None:
    texts = ["short", "a somewhat longer text about nothing", "word " * 100] * 12
    together = await real.client.inference.embed(MODEL, texts)
    alone = [(await real.client.inference.embed(MODEL, text))[0] for text in texts[:3]]
    for index, vector in enumerate(together):
        assert max(abs(x - y) for x, y in zip(vector, alone[index % 3], strict=True)) < 1e-5


async def test_a_text_beyond_the_window_is_refused_or_cut_as_asked(real: Node) -> None:
    long = " ".join(f"word{n}" for n in range(400))
    with pytest.raises(InvalidArgumentError) as failure:
        await real.client.inference.embed(MODEL, ["fine", long])
    assert failure.value.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert failure.value.field == "contents[1]"
    [head] = await real.client.inference.embed(MODEL, long, text_truncation=v1.TEXT_TRUNCATION_END)
    [tail] = await real.client.inference.embed(MODEL, long, text_truncation=v1.TEXT_TRUNCATION_START)
    [changed] = await real.client.inference.embed(MODEL, long + " end", text_truncation=v1.TEXT_TRUNCATION_END)
    assert head == changed
    assert head != tail


@pytest.mark.reference
async def test_vectors_equal_those_of_transformers(real: Node) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = str(find_packaged(MODEL))
    model, tokenizer = (
        transformers.BertModel.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    texts = ["Hello world", "Größe, naïve, 漢字 and emoji 🎉", "word " * 120, ""]
    ours = await real.client.inference.embed(MODEL, texts)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    theirs = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert torch.allclose(torch.tensor(ours), theirs, atol=1e-5)
