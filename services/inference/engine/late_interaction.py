"""What a folder says about late interaction, the way of ColBERT (arXiv:2004.12832, section 3); free of torch.

Read by both sides: the engine embeds by it, the service makes token ids by it.
"""

import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

COLBERT = "HF_ColBERT"
"""The architecture's name in config.json: a BERT below `bert.` and a projection without bias, `linear.weight`."""
METADATA = "artifact.metadata"
"""The authors' settings, JSON; without that file theirs of the second version hold."""


@dataclass(frozen=True, kw_only=True)
class LateInteractionConfig:
    """Markers and lengths."""

    query_marker: int
    """Token id behind the first token of a query."""
    item_marker: int
    """Token id behind the first token of an item."""
    mask: int
    """Token id that shorter queries are filled up with."""
    query_length: int
    """Tokens up to which they are."""
    item_length: int
    """Tokens read of an item, special ones included."""
    attends_to_masks: bool
    """Whether tokens attend to those that fill up."""
    skipped: frozenset[int]
    """Token ids of an item that are not compared: punctuation."""

    @classmethod
    def read(cls, folder: Path) -> "LateInteractionConfig":
        """Read a folder.

        Raises:
            ValueError: If it asks for what is not implemented, or its tokenizer lacks a marker.
        """
        if not (folder / "tokenizer.json").exists():
            raise ValueError(f"{folder}: no tokenizer.json; copy the model's own beside its weights")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        raw: dict[str, Any] = json.loads((folder / METADATA).read_text()) if (folder / METADATA).exists() else {}
        similarity = raw.get("similarity", "cosine")
        if similarity != "cosine":
            raise ValueError(f"{folder / METADATA}: similarity is {similarity!r}; only cosine is supported")
        most = json.loads((folder / "config.json").read_text())["max_position_embeddings"]

        def token(name: str) -> int:
            index = tokenizer.token_to_id(name)
            if index is None:
                raise ValueError(
                    f"{folder / 'tokenizer.json'}: the token {name!r} is missing, which ColBERT marks with"
                )
            return int(index)

        return cls(
            query_marker=token(raw.get("query_token_id", "[unused0]")),
            item_marker=token(raw.get("doc_token_id", "[unused1]")),
            mask=token("[MASK]"),
            query_length=min(raw.get("query_maxlen", 32), most),
            item_length=min(raw.get("doc_maxlen", 180), most),
            attends_to_masks=bool(raw.get("attend_to_mask_tokens", False)),
            skipped=_punctuation(tokenizer) if raw.get("mask_punctuation", True) else frozenset(),
        )


def _punctuation(tokenizer: Tokenizer) -> frozenset[int]:
    """First tokens of the punctuation of ASCII, as the authors count it."""
    ids = (tokenizer.encode(mark, add_special_tokens=False).ids for mark in string.punctuation)
    return frozenset(found[0] for found in ids if found)
