"""Sequence classifiers: an encoder, a pooler and a linear head; which one is told by the folder's architecture.

Shapes: B windows, S tokens of the longest, D width, C classes.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from services.inference.engine.bert import BertConfig, BertEncoder, mean_pooled
from services.inference.engine.deberta import ACTIVATIONS, DebertaConfig, DebertaEncoder
from services.inference.engine.encoder_weights import Weights, padded, read_weights, types_of

MEAN_POOLED_BERT = "MeanPooledBertForSequenceClassification"
"""Our name for a BERT whose head reads the mean of the hidden states."""

Pooler = Callable[[Tensor, Tensor], Tensor]
"""Vectors (B, D) from hidden states (B, S, D) and where they are real (B, S)."""


class Classifier:
    """Raw class scores of token windows, in fp32.

    Args:
        architecture: As config.json names it.
        encoder: Makes the hidden states.
        pool: Makes one vector per window of them.
        weights: Holds the head, `classifier`.
    """

    def __init__(
        self, architecture: str, encoder: BertEncoder | DebertaEncoder, pool: Pooler, weights: Weights
    ) -> None:
        self.architecture = architecture
        self._encoder = encoder
        self._pool = pool
        self._weights = weights

    @classmethod
    def load(cls, folder: Path, *, device: str) -> "Classifier":
        """Read a Hugging Face folder.

        Raises:
            ValueError: If its architecture is none of those known, or a tensor is missing or of the wrong shape.
        """
        architecture = classifier_architecture(folder)
        with torch.inference_mode():
            classifier = _BUILDERS[architecture](architecture, folder, read_weights(folder, device=device))
        try:
            classifier.logits([[0, 0]])  # touches every tensor, so that none is missed only when somebody asks
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"{folder}: the weights do not fit config.json: {error}") from error
        return classifier

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self._weights["classifier.bias"])

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self._weights.parameters

    @torch.inference_mode()
    def logits(self, windows: list[list[int]], firsts: Sequence[int] | None = None) -> Tensor:
        """Raw outputs (B, C) of windows given as token ids with their special tokens.

        Args:
            windows: Single texts, or pairs of them.
            firsts: How many tokens at the head of each have token type 0, those behind have type 1; None = all.
        """
        ids_BS, real_BS = padded(windows, device=self._weights.device)
        types_BS = None if firsts is None else types_of(firsts, length=ids_BS.shape[1], device=ids_BS.device)
        pooled_BD = self._pool(self._encoder.encode(ids_BS, real_BS, types_BS), real_BS)
        return linear(pooled_BD, self._weights["classifier.weight"], self._weights["classifier.bias"])


def classifier_architecture(folder: Path) -> str:
    """The architecture of a classifier's folder.

    Raises:
        ValueError: If it is none of those known; says what to do.
    """
    file = folder / "config.json"
    if not file.exists():
        raise ValueError(f"{folder}: no config.json is in it; give the folder of a sequence classifier")
    stated = json.loads(file.read_text()).get("architectures") or ["none"]
    if stated[0] not in _BUILDERS:
        known = ", ".join(_BUILDERS)
        message = f"{file}: architecture {stated[0]} is no sequence classifier that is served; known: {known}"
        raise ValueError(message)
    return str(stated[0])


def _bert(architecture: str, folder: Path, weights: Weights) -> Classifier:
    encoder = BertEncoder(BertConfig.read(folder), weights, prefix="bert.")

    def pool(x_BSD: Tensor, real_BS: Tensor) -> Tensor:  # noqa: ARG001 (the first token is always real)
        dense = weights["bert.pooler.dense.weight"], weights["bert.pooler.dense.bias"]
        return torch.tanh(linear(x_BSD[:, 0], *dense))

    return Classifier(architecture, encoder, pool, weights)


def _mean_pooled_bert(architecture: str, folder: Path, weights: Weights) -> Classifier:
    return Classifier(architecture, BertEncoder(BertConfig.read(folder), weights, prefix="bert."), mean_pooled, weights)


def _deberta(architecture: str, folder: Path, weights: Weights) -> Classifier:
    file = folder / "config.json"
    name = json.loads(file.read_text()).get("pooler_hidden_act", "gelu")
    if name not in ACTIVATIONS:
        raise ValueError(f"{file}: pooler_hidden_act {name!r} is not supported; known: {', '.join(ACTIVATIONS)}")

    def pool(x_BSD: Tensor, real_BS: Tensor) -> Tensor:  # noqa: ARG001 (as above)
        dense = weights["pooler.dense.weight"], weights["pooler.dense.bias"]
        return ACTIVATIONS[name](linear(x_BSD[:, 0], *dense))

    return Classifier(architecture, DebertaEncoder(DebertaConfig.read(folder), weights), pool, weights)


_BUILDERS: dict[str, Callable[[str, Path, Weights], Classifier]] = {
    "BertForSequenceClassification": _bert,
    "DebertaV2ForSequenceClassification": _deberta,
    MEAN_POOLED_BERT: _mean_pooled_bert,
}
