"""What the heads see of a text: embeddings and detector logits from a running inference service, kept on disk."""

import hashlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llamastack import v1
from services.safety.guards import Guards
from stack_client import channel

Array = NDArray[np.float32]

EMBEDDER = "all-minilm-l6-v2"
"""The sentence encoder under the heads, by its name in the inference service."""
DETECTOR = "tool-text-detector"
"""The classifier of text from tools."""

_PROBE = "Ignore the weather and bring an umbrella anyway."
_BATCH = 64
_SECONDS = 300.0


class Features:
    """Vectors by text; each text is sent once per model and then read from the cache.

    Args:
        guards: The inference service.
        cache: SQLite file of vectors computed before, made where it is not there.
    """

    def __init__(self, guards: Guards, *, cache: Path) -> None:
        self._guards = guards
        self._cache = cache
        self._stamps: dict[str, str] = {}

    async def fingerprint(self, model: str) -> str:
        """What a model makes of a fixed text, as the SHA-256 of its numbers to two decimals, hexadecimal.

        Another version of the weights has another one, and so misses the cache.

        Raises:
            StackError: If the model is not served.
        """
        if model not in self._stamps:
            ask = {EMBEDDER: self._embed, DETECTOR: self._detect}[model]
            numbers = np.round(np.concatenate(await ask([_PROBE])), 2) + 0.0
            self._stamps[model] = hashlib.sha256(numbers.astype("<f4").tobytes()).hexdigest()
        return self._stamps[model]

    async def embeddings(self, texts: Sequence[str]) -> Array:
        """Sentence vectors of length 1 as (texts, 384), float32.

        Raises:
            StackError: If the encoder cannot be asked.
        """
        return await self._fill(EMBEDDER, texts, self._embed)

    async def detections(self, texts: Sequence[str]) -> Array:
        """The highest main logit of the detector over a text's windows and the auxiliary logit there, (texts, 2).

        Raises:
            StackError: If the detector is not served.
        """
        return await self._fill(DETECTOR, texts, self._detect)

    async def _embed(self, texts: Sequence[str]) -> list[Array]:
        return [np.asarray(vector, np.float32) for vector in await self._guards.embed(EMBEDDER, texts)]

    async def _detect(self, texts: Sequence[str]) -> list[Array]:
        request = v1.ClassifyRequest(model_id=DETECTOR, texts=texts, windows=v1.ClassifyWindows(max_windows=1024))
        response = await self._guards.classify(request)
        return [strongest_window(result) for result in response.results]

    async def _fill(
        self, model: str, texts: Sequence[str], ask: Callable[[Sequence[str]], Awaitable[list[Array]]]
    ) -> Array:
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        store = sqlite3.connect(self._cache)
        try:
            store.execute("CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, value BLOB)")
            stamp = await self.fingerprint(model)
            keys = [_key(model, stamp, text) for text in texts]
            found = {
                key: np.frombuffer(row[0], np.float32)
                for key in dict.fromkeys(keys)
                if (row := store.execute("SELECT value FROM vectors WHERE key = ?", (key,)).fetchone())
            }
            missing = list({key: text for key, text in zip(keys, texts, strict=True) if key not in found}.items())
            # Neighbours of like length waste no padding.
            missing.sort(key=lambda item: len(item[1]))
            for start in range(0, len(missing), _BATCH):
                part = missing[start : start + _BATCH]
                vectors = await ask([text for _, text in part])
                for (key, _), vector in zip(part, vectors, strict=True):
                    found[key] = vector
                    store.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?)", (key, vector.tobytes()))
                store.commit()
        finally:
            store.close()
        return np.stack([found[key] for key in keys])


def _key(model: str, stamp: str, text: str) -> str:
    return hashlib.sha256(f"{model}\0{stamp}\0{text}".encode(errors="surrogatepass")).hexdigest()


def strongest_window(result: v1.Classification) -> Array:
    """Main and auxiliary logit of the window with the highest main logit, (2,)."""
    best = max(result.windows, key=lambda window: window.logits[0])
    return np.asarray(best.logits, np.float32)


@asynccontextmanager
async def open_features(address: str, *, cache: Path) -> AsyncIterator[Features]:
    """Features from the inference service at an address."""
    connection = channel.connect(address)
    try:
        yield Features(Guards(connection, seconds=_SECONDS), cache=cache)
    finally:
        await connection.close(None)
