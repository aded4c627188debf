"""Embeddings: from the inference service, in batches, kept by content."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import sqlalchemy as sa
from google.protobuf import json_format

from llamastack import v1
from services.memory.chunks import Vector
from services.memory.database import Database
from services.memory.tables import embeddings
from services.runtime.moments import now
from services.runtime.together import together
from stack_client.calls import DEFAULT_TIMEOUT, every_page, unary
from stack_client.content import content, plain
from stack_client.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

BATCHES_AT_ONCE = 2
TRIM_AT = 1.1
"""Share of the kept embeddings at which the oldest are dropped."""
KEY_BATCH = 500
DEFAULT_WINDOW = 256
SPECIAL_TOKENS = 2
"""Tokens that an encoder puts around a text."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingModel:
    """An embedding model as banks know it."""

    model_id: str
    """Its identifier."""
    dimension: int
    """Numbers in its embeddings."""
    window: int
    """Tokens of a text that it reads, without special ones."""

    @property
    def stamp(self) -> str:
        """What embeddings of one space share."""
        return f"{self.model_id}:{self.dimension}"


class Embedder:
    """Embedding models of the inference service.

    Args:
        channel: To the inference service.
        database: Keeps embeddings by content.
        batch: Texts of one call.
        cached: Embeddings kept; 0 keeps none.
        default_model: Of callers that name none; empty means the first one served.
    """

    def __init__(
        self, channel: grpc.aio.Channel, database: Database, *, batch: int, cached: int, default_model: str
    ) -> None:
        self._inference: Any = v1.InferenceServiceStub(channel)
        self._models: Any = v1.ModelsServiceStub(channel)
        self._database = database
        self._batch = batch
        self._cached = cached
        self._default = default_model
        self._known: dict[str, EmbeddingModel] = {}
        self._at_once = asyncio.Semaphore(BATCHES_AT_ONCE)

    async def model(self, model_id: str = "", *, field: str = "embedding_model") -> EmbeddingModel:
        """A model by name; the default one for none.

        Raises:
            NotFoundError: If it is not served.
            InvalidArgumentError: If it is no embedding model.
            UnavailableError: If the inference service cannot be reached, or the model is still loading.
        """
        if not model_id:
            model_id = self._default or await self._first()
        if model_id not in self._known:
            response = await unary(
                self._models.GetModel(v1.GetModelRequest(model_id=model_id), timeout=DEFAULT_TIMEOUT)
            )
            self._known[model_id] = _described(response.model, field=field)
        return self._known[model_id]

    async def embed(
        self, model: EmbeddingModel, texts: Sequence[str], *, query: bool = False, anew: bool = False
    ) -> list[Vector]:
        """Normalised vectors of texts, in their order; each text is computed once.

        Texts longer than the model's window are cut at their end.

        Args:
            model: From `model`.
            texts: Any number.
            query: They are questions: computed as such and not kept.
            anew: Compute them even if they are kept, for the model may have changed under its name.

        Raises:
            StackError: If the inference service fails.
        """
        hashes = [content_hash(text) for text in texts]
        known = {} if query or anew else await self._recall(model, set(hashes))
        missing = {digest: text for digest, text in zip(hashes, texts, strict=True) if digest not in known}
        # Alike lengths side by side: a batch costs what its longest text does.
        order = sorted(missing.items(), key=lambda item: len(item[1]))
        batches = [order[start : start + self._batch] for start in range(0, len(order), self._batch)]
        fresh: dict[str, Vector] = {}
        for vectors in await together(self._call(model, batch, query=query) for batch in batches):
            fresh.update(vectors)
        if fresh and not query:
            await self._keep(model, fresh)
        return [known[digest] if digest in known else fresh[digest] for digest in hashes]

    def counter(self, model: EmbeddingModel | None) -> "RemoteTokens":
        """Counts tokens as the model does, or as words and their pieces where there is no model."""
        return RemoteTokens(self._inference, model)

    async def _first(self) -> str:
        models = await every_page(self._models.ListModels, v1.ListModelsRequest(), timeout=DEFAULT_TIMEOUT)
        for model in models:
            if model.model_type == v1.MODEL_TYPE_EMBEDDING:
                return str(model.identifier)
        message = "the inference service has no embedding model; register one, or set memory.embedding_model"
        raise NotFoundError(message, reason="MODEL_NOT_FOUND", field="embedding_model")

    async def _call(
        self, model: EmbeddingModel, batch: Sequence[tuple[str, str]], *, query: bool
    ) -> Mapping[str, Vector]:
        request = v1.EmbedRequest(
            model_id=model.model_id,
            contents=[content(text) for _, text in batch],
            text_truncation=v1.TEXT_TRUNCATION_END,
            task_type=v1.EMBEDDING_TASK_TYPE_QUERY if query else v1.EMBEDDING_TASK_TYPE_DOCUMENT,
        )
        async with self._at_once:
            try:
                response = await unary(self._inference.Embed(request, timeout=DEFAULT_TIMEOUT))
            except UnavailableError as error:
                message = f"embedding model {model.model_id!r} cannot be asked now: {error.message}"
                raise UnavailableError(message, retry_after=error.retry_after) from error
        vectors = (_directed(embedding.values, model=model) for embedding in response.embeddings)
        return {digest: vector for (digest, _), vector in zip(batch, vectors, strict=True)}

    async def _recall(self, model: EmbeddingModel, hashes: set[str]) -> dict[str, Vector]:
        c, found, wanted = embeddings.c, {}, sorted(hashes)
        if not self._cached:
            return {}
        async with self._database.read() as connection:
            for start in range(0, len(wanted), KEY_BATCH):
                some = wanted[start : start + KEY_BATCH]
                query = sa.select(c.content_hash, c.vector).where(c.stamp == model.stamp, c.content_hash.in_(some))
                found.update({row[0]: np.frombuffer(row[1], "<f4") for row in await connection.execute(query)})
        return found

    async def _keep(self, model: EmbeddingModel, vectors: Mapping[str, Vector]) -> None:
        if not self._cached:
            return
        moment = now()
        rows = [
            {"stamp": model.stamp, "content_hash": digest, "vector": to_blob(vector), "used_at": moment}
            for digest, vector in vectors.items()
        ]
        c = embeddings.c
        async with self._database.write() as connection:
            same = c.content_hash == sa.bindparam("content_hash_")
            await connection.execute(
                sa.delete(embeddings).where(c.stamp == model.stamp, same),
                [{"content_hash_": digest} for digest in vectors],
            )
            await connection.execute(sa.insert(embeddings), rows)
            count = (await connection.execute(sa.select(sa.func.count()).select_from(embeddings))).scalar_one()
            if count > self._cached * TRIM_AT:
                oldest = sa.select(c.used_at).order_by(c.used_at).offset(count - self._cached).limit(1)
                limit = (await connection.execute(oldest)).scalar_one()
                await connection.execute(sa.delete(embeddings).where(c.used_at < limit))


class RemoteTokens:
    """Where a model's tokens lie; a model without a tokenizer of its own is counted in pieces of words."""

    def __init__(self, inference: Any, model: EmbeddingModel | None) -> None:  # noqa: ANN401 (a generated stub)
        self._inference = inference
        self._model = model
        self.window = model.window if model else DEFAULT_WINDOW

    async def offsets(self, text: str) -> Sequence[tuple[int, int]]:
        """See `text.TokenCounter`."""
        if self._model is not None and text:
            request = v1.TokenizeRequest(model_id=self._model.model_id, text=text, with_offsets=True)
            try:
                response = await unary(self._inference.Tokenize(request, timeout=DEFAULT_TIMEOUT))
                return list(zip(response.starts, response.ends, strict=True))
            except UnsupportedError:
                self._model = None
        return pieces(text)


def normalised(values: Sequence[float] | Vector, *, model: EmbeddingModel, field: str = "embedding") -> Vector:
    """A vector of length 1.

    Raises:
        InvalidArgumentError: If it has another dimension than the model's, or is no direction.
    """
    vector = np.asarray(values, dtype="<f4")
    if len(vector) != model.dimension:
        message = (
            f"{field} has {len(vector)} numbers; the bank's model {model.model_id!r} makes {model.dimension}: "
            "give vectors of that model"
        )
        raise InvalidArgumentError(message, field=field)
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0:
        raise InvalidArgumentError(f"{field} is no direction: its length is {length:g}", field=field)
    return (vector / np.float32(length)).astype(np.float32)


def _directed(values: Sequence[float], *, model: EmbeddingModel) -> Vector:
    """A model's vector, of length 1; one without a direction, as of an empty text, stands equally far from all axes."""
    vector = np.asarray(values, dtype="<f4")
    return normalised(vector if vector.any() else np.ones_like(vector), model=model)


def to_blob(vector: Vector) -> bytes:
    """A vector as the tables keep it."""
    return vector.astype("<f4").tobytes()


def content_hash(text: str) -> str:
    """Key of a text's embedding."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _described(model: v1.Model, *, field: str) -> EmbeddingModel:
    if model.model_type != v1.MODEL_TYPE_EMBEDDING:
        message = f"{field}: {model.identifier!r} is no embedding model; see `stack models` for those that are"
        raise InvalidArgumentError(message, reason="WRONG_MODEL_TYPE", field=field)
    if model.state == v1.MODEL_STATE_FAILED:
        raise FailedPreconditionError(f"embedding model {model.identifier!r} failed to load: {model.state_message}")
    if "embedding_dimension" not in model.metadata:
        why = model.state_message or "it is loading"
        raise UnavailableError(f"embedding model {model.identifier!r} is not ready: {why}", reason="NOT_READY")
    facts = plain(json_format.MessageToDict(model.metadata))
    window = int(facts.get("context_length", DEFAULT_WINDOW))
    return EmbeddingModel(
        model_id=model.identifier,
        dimension=int(facts["embedding_dimension"]),
        window=max(window - SPECIAL_TOKENS, 1),
    )


def pieces(text: str) -> list[tuple[int, int]]:
    """Runs of at most four letters or digits, and every other visible character alone: rather more than tokens."""
    result: list[tuple[int, int]] = []
    open_run = False
    for place, character in enumerate(text):
        if character.isspace():
            open_run = False
        elif character.isalnum() and open_run and place - result[-1][0] < 4:
            result[-1] = (result[-1][0], place + 1)
        else:
            result.append((place, place + 1))
            open_run = character.isalnum()
    return result
