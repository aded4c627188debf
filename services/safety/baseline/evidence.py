"""Rows of a split turned into logits, for training and for thresholds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.safety.baseline.corpora import Row
from services.safety.baseline.features import Features
from services.safety.baseline.reading import read

Array = NDArray[np.float64]

TRAINED_WINDOWS = 4
"""Windows of a text that enter training; together they weigh as much as one short text."""


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Sentence vectors of the windows of several texts."""

    rows: Sequence[Row]
    """The texts."""
    matrix: Array
    """(windows, D)."""
    owner: NDArray[np.int64]
    """Index of the text that each window belongs to, never falling."""

    def best(self, logits: Callable[[Array], Array]) -> Array:
        """The highest logit of each text, (texts,)."""
        found = np.full(len(self.rows), -np.inf)
        np.maximum.at(found, self.owner, logits(self.matrix))
        return found

    def training(self) -> tuple[Array, Array]:
        """The first windows of each text and their weights; the weights of a text sum to 1."""
        place = np.arange(len(self.owner)) - np.searchsorted(self.owner, self.owner)
        kept = place < TRAINED_WINDOWS
        counts = np.bincount(self.owner[kept], minlength=len(self.rows))
        return self.matrix[kept], 1.0 / counts[self.owner[kept]]


async def embed(features: Features, rows: Sequence[Row]) -> Vectors:
    """Vectors of the windows of texts; texts without any visible window are left out."""
    windows = [[window.text for window in read(row.text).windows()] for row in rows]
    kept = [index for index, texts in enumerate(windows) if texts]
    flat = [text for index in kept for text in windows[index]]
    owner = np.repeat(np.arange(len(kept)), [len(windows[index]) for index in kept])
    matrix = (await features.embeddings(flat)).astype(np.float64) if flat else np.zeros((0, 384))
    return Vectors(rows=[rows[index] for index in kept], matrix=matrix, owner=owner)


async def detect(features: Features, rows: Sequence[Row]) -> Array:
    """Main and auxiliary logit of the detector where the main one is highest, of each text, (texts, 2)."""
    parts = [[part.text for part in read(row.text).parts] or [row.text] for row in rows]
    logits = await features.detections([text for texts in parts for text in texts])
    ends = np.cumsum([len(texts) for texts in parts])
    starts = ends - [len(texts) for texts in parts]
    best = [start + int(logits[start:end, 0].argmax()) for start, end in zip(starts, ends, strict=True)]
    return logits[best].astype(np.float64)


def select(vectors: Mapping[str, Vectors], names: Sequence[str], keep: Callable[[Row], bool]) -> tuple[Array, Array]:
    """Training windows and weights of the rows of some sources that are wanted."""
    matrices, weights = [np.zeros((0, 384))], [np.zeros(0)]
    for name in names:
        source = vectors[name]
        matrix, weight = source.training()
        place = np.arange(len(source.owner)) - np.searchsorted(source.owner, source.owner)
        owner = source.owner[place < TRAINED_WINDOWS]
        wanted = np.array([keep(row) for row in source.rows], dtype=bool)[owner]
        matrices.append(matrix[wanted])
        weights.append(weight[wanted])
    return np.concatenate(matrices), np.concatenate(weights)
