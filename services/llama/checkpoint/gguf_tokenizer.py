"""Write the tokenizer inside a GGUF file as the `tokenizer.json` that the `tokenizers` library reads."""

from collections.abc import Mapping
from typing import Any

from services.llama.errors import TokenizerError
from services.llama.tokenizer import LLAMA3_SPLIT

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # token types, ggml-org/ggml docs/gguf.md


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


# How text is cut before merging, by the name in `tokenizer.ggml.pre`; and whether a piece that is itself a token is
# taken whole without merging, as tiktoken's ranks imply.
_LLAMA3: tuple[list[dict[str, Any]], bool] = (
    [
        {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False},
        _byte_level(use_regex=False),
    ],
    True,
)
_SMOLLM: tuple[list[dict[str, Any]], bool] = (
    [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)],
    False,
)
_PRE_TOKENIZERS = {"llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "smollm": _SMOLLM}


def tokenizer_json(metadata: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """The contents of a `tokenizer.json` with the vocabulary, merges and special tokens of a GGUF file.

    Raises:
        TokenizerError: the file has no tokenizer, or one whose kind or way of cutting text is unknown here.
    """
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise TokenizerError(f"{source}: tokenizer.ggml.model = {kind!r} is not supported; only byte-level BPE 'gpt2'")
    if pre not in _PRE_TOKENIZERS:
        raise TokenizerError(
            f"{source}: tokenizer.ggml.pre = {pre!r} is not supported; it must be one of {list(_PRE_TOKENIZERS)}"
        )
    pre_tokenizers, ignore_merges = _PRE_TOKENIZERS[pre]
    tokens, merges, types = (metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "merges", "token_type"))
    if not tokens or merges is None or types is None or len(types) != len(tokens):
        raise TokenizerError(f"{source}: tokenizer.ggml needs tokens, merges and one token_type for each token")
    special = {i: kind != _USER_DEFINED for i, kind in enumerate(types) if kind in {_UNKNOWN, _CONTROL, _USER_DEFINED}}
    # Special tokens behind the ordinary ones stay out of the vocabulary, so that ordinary text cannot reach them even
    # where whole pieces are looked up. Before them they must stay in: the library numbers added tokens from the end.
    words = [i for i in range(len(tokens)) if i not in special]
    in_vocabulary = words if words == list(range(len(words))) else range(len(tokens))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, tokens[i], special=is_special) for i, is_special in special.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
        "post_processor": None,
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": {tokens[i]: i for i in in_vocabulary},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }


def _added(token_id: int, content: str, *, special: bool) -> dict[str, Any]:
    return {
        "id": token_id, "content": content, "special": special,
        "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
    }  # fmt: skip
