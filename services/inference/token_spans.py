"""Where the tokens of a text lie in it, in Unicode code points."""

from collections.abc import Sequence

from tokenizers import Encoding


def encoder_spans(encoding: Encoding) -> list[tuple[int, int]]:
    """First and one past the last character of each token, without those that the model puts around a text."""
    return [
        (start, end)
        for (start, end), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        if not special
    ]


def byte_spans(text: str, tokens: Sequence[bytes]) -> list[tuple[int, int]]:
    """The same of tokens that are bytes; each lies on all characters that its bytes touch.

    Args:
        text: What was cut.
        tokens: Its UTF-8 bytes, cut.
    """
    character_of: list[int] = []
    for index, character in enumerate(text):
        character_of.extend([index] * len(character.encode("utf-8", "surrogatepass")))
    spans, at = [], 0
    for token in tokens:
        end = at + len(token)
        first = character_of[at] if at < len(character_of) else len(text)
        spans.append((first, character_of[end - 1] + 1 if token and end <= len(character_of) else first))
        at = end
    return spans
