"""Where tokens lie in a text."""

from hypothesis import given
from hypothesis import strategies as st

from services.inference.token_spans import byte_spans


@given(st.text(max_size=40), st.lists(st.integers(1, 5), max_size=60))
def test_spans_of_byte_tokens_cover_every_character_in_order(text: str, cuts: list[int]) -> None:
    text = text.encode("utf-8", "ignore").decode()
    raw, tokens, at = text.encode(), [], 0
    for cut in [*cuts, len(raw)]:
        tokens.append(raw[at : at + cut])
        at += cut
    tokens = [token for token in tokens if token]
    spans = byte_spans(text, tokens)
    assert len(spans) == len(tokens)
    assert {place for start, end in spans for place in range(start, end)} == set(range(len(text)))
    for token, (start, end) in zip(tokens, spans, strict=True):
        assert token in text[start:end].encode()
