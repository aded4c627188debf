"""The trained heads and their card, as they ship: linear maps on sentence vectors, calibrations, thresholds."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.safety.baseline.content_labels import CONTENT_CLASSES
from services.safety.baseline.logistic import sigmoid

Array = NDArray[np.float64]

WEIGHTS = Path(__file__).with_name("heads.npz")
CARD = Path(__file__).with_name("card.json")
GAMMA = 3.0
"""Width of the kernel; chosen on leave-one-source-out figures among 1.5 and 3."""
TEMPERATURE = 2.41
"""Divides the detector's logits; the value with which its authors calibrated it."""


@dataclass(frozen=True, kw_only=True)
class KernelHead:
    """A head that compares a vector with landmarks by a Gaussian kernel. M landmarks of width D."""

    landmarks: Array
    """Vectors of length 1, (M, D)."""
    weights: Array
    """One per landmark and the offset, (M + 1,)."""

    def __call__(self, vectors: Array) -> Array:
        """Logits (N,) for vectors of length 1, (N, D)."""
        found: Array = kernel(vectors, self.landmarks) @ self.weights[:-1] + self.weights[-1]
        return found


def kernel(vectors: Array, landmarks: Array) -> Array:
    """Gaussian kernel of unit vectors, (N, M) for (N, D) and (M, D)."""
    found: Array = np.exp(-2 * GAMMA * np.maximum(0.0, 1 - vectors @ landmarks.T))
    return found


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Heads on vectors of the sentence encoder. D is its width, 384; C the classes of content."""

    injection: Array
    """Weights of the injection head and its offset, (D + 1,)."""
    content: "KernelHead"
    """Head of harmful content."""
    classes: Array
    """The same for each class given that content is harmful, (C, D + 1)."""

    def injection_logits(self, vectors: Array) -> Array:
        """(N,) for vectors (N, D)."""
        found: Array = vectors @ self.injection[:-1] + self.injection[-1]
        return found

    def content_logits(self, vectors: Array) -> Array:
        """(N,) for vectors (N, D)."""
        return self.content(vectors)

    def shares(self, vector: Array) -> Mapping[str, float]:
        """Share of each class given that the content of a text, (D,), is harmful; they sum to 1."""
        odds = sigmoid(self.classes[:, :-1] @ vector + self.classes[:, -1])
        return dict(zip(CONTENT_CLASSES, (odds / odds.sum()).tolist(), strict=True))

    def write(self, path: Path) -> None:
        """Write them in float32; equal heads give equal bytes."""
        # numpy stamps its archives with a fixed date.
        np.savez(
            path,
            injection=_small(self.injection),
            content_landmarks=self.content.landmarks.astype(np.float16),
            content_weights=_small(self.content.weights),
            classes=_small(self.classes),
        )


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the training script found out about the heads."""

    raw: Mapping[str, Any]
    """The whole card."""

    def score(self, task: str, logit: float) -> float:
        """0 to 1 from the logit of a task; 0.5 is the logit that 1 % of the harmless dev texts reach.

        Args:
            task: `injection` (head and detector), `injection_alone` (head), `content_user` or `content_assistant`.
            logit: The task's logit.
        """
        entry = self.raw["calibration"][task]
        return float(sigmoid(np.float64(entry["slope"] * (logit - entry["shift"]))))  # type: ignore[arg-type]

    def injection_logit(self, head: float, detector: float) -> float:
        """The logit of task `injection` from the head's logit and the detector's main logit."""
        weight: float = self.raw["calibration"]["injection"]["head_weight"]
        return weight * head + detector / TEMPERATURE

    def threshold(self, surface: str) -> float:
        """Score at which texts of a surface are blocked: 1 % of the harmless dev texts."""
        return float(self.raw["thresholds"][surface]["block"])


@cache
def load_heads() -> tuple[Heads, str]:
    """The heads that ship, and the SHA-256 of their file."""
    raw = WEIGHTS.read_bytes()
    with np.load(WEIGHTS, allow_pickle=False) as file:
        parts = {name: file[name].astype(np.float64) for name in file.files}
    content = KernelHead(landmarks=parts["content_landmarks"], weights=parts["content_weights"])
    heads = Heads(injection=parts["injection"], content=content, classes=parts["classes"])
    return heads, hashlib.sha256(raw).hexdigest()


@cache
def load_card() -> Card:
    """The card that ships with the heads."""
    return Card(raw=json.loads(CARD.read_text(encoding="utf-8")))


def detector_score(main: float, aux: float) -> float:
    """Score of an injection in untrusted text by the detector's two logits, 0 to 1.

    The second output was trained to veto the first; the difference ranks planted injections better than the first alone
    (dev: area under the curve .867 against .841).
    """
    return float(sigmoid(np.float64((main - aux) / TEMPERATURE)))  # type: ignore[arg-type]


def _small(values: Array) -> NDArray[np.float32]:
    # Rounded, so that the last bits of another machine's arithmetic do not change the file.
    return np.round(values, 4).astype(np.float32)
