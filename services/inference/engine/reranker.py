"""Rerank models: cross-encoders, which read query and item together, and late interaction, which embeds them apart.

Both score windows that hold a query and, from `firsts` on, an item.

Shapes: B pairs, Q tokens of the longest query, S of the longest item, D width of the token vectors.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from services.inference.engine.bert import BertConfig, BertEncoder
from services.inference.engine.classifier import Classifier
from services.inference.engine.encoder_weights import Weights, padded, read_weights
from services.inference.engine.late_interaction import COLBERT, LateInteractionConfig

CROSS_ENCODERS = ("BertForSequenceClassification", "DebertaV2ForSequenceClassification")


class LateInteraction:
    """Scores of pairs by their tokens' vectors, in fp32: each token of the query counts its most similar of the item.

    Args:
        config: Markers and lengths.
        encoder: Makes the hidden states.
        weights: Holds the projection, `linear`.
    """

    architecture = COLBERT
    classes = 1

    def __init__(self, config: LateInteractionConfig, encoder: BertEncoder, weights: Weights) -> None:
        self._config = config
        self._encoder = encoder
        self._weights = weights
        self._skipped = torch.tensor(sorted(config.skipped), device=weights.device, dtype=torch.long)

    @classmethod
    def load(cls, folder: Path, *, device: str) -> "LateInteraction":
        """Read a folder of architecture `HF_ColBERT`.

        Raises:
            ValueError: If a tensor is missing or of the wrong shape, or settings are not supported.
        """
        weights = read_weights(folder, device=device)
        encoder = BertEncoder(BertConfig.read(folder), weights, prefix="bert.")
        model = cls(LateInteractionConfig.read(folder), encoder, weights)
        try:
            model.logits([[0, 0, 0, 0]], [2])  # touches every tensor
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"{folder}: the weights do not fit config.json: {error}") from error
        return model

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self._weights.parameters

    @torch.inference_mode()
    def logits(self, windows: list[list[int]], firsts: Sequence[int] | None = None) -> Tensor:
        """Scores (B, 1): the sum over the query's tokens of their greatest cosine to a token of the item.

        Args:
            windows: A query's token ids and behind them an item's, both with their markers and special tokens.
            firsts: How many of them are the query's.
        """
        assert firsts is not None
        queries = [tuple(ids[:first]) for ids, first in zip(windows, firsts, strict=True)]
        distinct = list(dict.fromkeys(queries))  # the items of one request have one query
        vectors_QD = dict(zip(distinct, self._queries([list(ids) for ids in distinct]), strict=True))
        ids_BS, real_BS = padded(
            [ids[first:] for ids, first in zip(windows, firsts, strict=True)], device=self._weights.device
        )
        items_BSD = self._vectors(ids_BS, real_BS)
        compared_BS = real_BS & ~torch.isin(ids_BS, self._skipped)
        rows = []
        for query, item_SD, compared_S in zip(queries, items_BSD, compared_BS, strict=True):
            cosines_QS = vectors_QD[query] @ item_SD.T
            rows.append(cosines_QS.masked_fill(~compared_S, float("-inf")).amax(1).sum())
        return torch.stack(rows)[:, None]

    def _queries(self, queries: list[list[int]]) -> list[Tensor]:
        """Vectors (Q, D) of each query's tokens, and of the masks that fill it up (section 3.2)."""
        config = self._config
        whole = [ids + [config.mask] * (config.query_length - len(ids)) for ids in queries]
        ids_BQ, real_BQ = padded(whole, device=self._weights.device)
        seen_BQ = real_BQ if config.attends_to_masks else padded(queries, device=self._weights.device)[1]
        missing = ids_BQ.shape[1] - seen_BQ.shape[1]
        seen_BQ = torch.nn.functional.pad(seen_BQ, (0, missing))
        return [row[: len(ids)] for row, ids in zip(self._vectors(ids_BQ, seen_BQ), whole, strict=True)]

    def _vectors(self, ids_BS: Tensor, real_BS: Tensor) -> Tensor:
        """Vectors (B, S, D) of length 1."""
        x_BSD = linear(self._encoder.encode(ids_BS, real_BS), self._weights["linear.weight"])
        return normalize(x_BSD, dim=-1)


def load_reranker(folder: Path, *, device: str) -> Classifier | LateInteraction:
    """Read a Hugging Face folder.

    Raises:
        ValueError: If it is no rerank model that is served; says what is.
    """
    file = folder / "config.json"
    if not file.exists():
        raise ValueError(f"{folder}: no config.json is in it; give the folder of a cross-encoder")
    stated = (json.loads(file.read_text()).get("architectures") or ["none"])[0]
    if stated == COLBERT:
        return LateInteraction.load(folder, device=device)
    if stated not in CROSS_ENCODERS:
        known = ", ".join((*CROSS_ENCODERS, COLBERT))
        raise ValueError(f"{file}: architecture {stated} is no rerank model that is served; known: {known}")
    model = Classifier.load(folder, device=device)
    if model.classes != 1:
        message = f"{folder}: its head has {model.classes} classes, a cross-encoder's has one; is it a classifier?"
        raise ValueError(message)
    try:
        model.logits([[0, 0]], [1])
    except IndexError as error:
        raise ValueError(f"{folder}: it has no token type for the second of two texts ({error})") from error
    return model
