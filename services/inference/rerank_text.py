"""The text side of rerank models: a query and items to pairs of token ids, and the model's outputs to scores.

A cross-encoder's one output becomes a score as its config.json says, in the words of sentence-transformers:
`{"sentence_transformers": {"activation_fn": ...}}`, or `sbert_ce_default_activation_function` of its older versions.
Identity leaves the raw output, which has no bounds; a sigmoid, also where nothing is said, gives 0 to 1. The order is
that of the raw outputs, where a sigmoid's rounding would make ties. Late interaction's sums stay as they are.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llamastack import v1
from services.inference import dialog
from services.inference.classifier_text import window_of
from services.inference.encoder_tokenizers import EncoderTokenizer, encoder_tokenizer
from services.inference.engine.late_interaction import COLBERT, LateInteractionConfig
from services.inference.provider import Facts
from stack_client.errors import InvalidArgumentError

Activation = Literal["sigmoid", "identity"]
_ACTIVATIONS: dict[str, Activation] = {"Sigmoid": "sigmoid", "Identity": "identity"}


class Frame(NamedTuple):
    """Special tokens around a text."""

    before: Sequence[int]
    after: Sequence[int]


class Pairs(NamedTuple):
    """The pairs of a request, each once: a batch may round its equal rows differently, and equal items are equal."""

    windows: list[list[int]]
    """Token ids of query and item."""
    firsts: list[int]
    """How many tokens of each are the query's to the engine."""
    places: list[int]
    """By item, where its pair is."""


@dataclass(frozen=True, kw_only=True)
class RerankModel:
    """The text side of a rerank model whose weights the engine holds."""

    tokenizer: EncoderTokenizer
    query: Frame
    """Around the query."""
    item: Frame
    """Around an item, which stands behind the query."""
    context: int
    """Tokens read of a pair, or of an item where it is `apart`, special ones included."""
    query_context: int
    """Tokens read of a query."""
    apart: bool = False
    """Whether query and item have a window each."""
    two_types: bool = True
    """Whether the engine has to tell the item's tokens from the query's."""
    activation: Activation = "identity"
    """What makes a score of an output."""

    @property
    def facts(self) -> Facts:
        """Facts for the model's metadata."""
        return {"window": self.context, "activation": self.activation}

    def framed_query(self, text: str) -> list[int]:
        """Token ids of a query with its special tokens.

        Raises:
            InvalidArgumentError: If the query is too long for the model, or leaves no room for an item.
        """
        ids = self.tokenizer.encode(text).ids
        room = self.query_context - len(self.query.before) - len(self.query.after)
        if not self.apart:
            room -= len(self.item.before) + len(self.item.after) + 1
        if len(ids) > room:
            message = f"query has {len(ids)} tokens, this model reads at most {room} of one; ask with fewer words"
            raise InvalidArgumentError(message, reason="CONTEXT_LENGTH_EXCEEDED", field="query")
        return [*self.query.before, *ids, *self.query.after]

    def pair(self, query: Sequence[int], item: str) -> list[int]:
        """Token ids of a framed query and an item, which is cut at its end to what there is room for."""
        room = self.context - len(self.item.before) - len(self.item.after) - (0 if self.apart else len(query))
        return [*query, *self.item.before, *self.tokenizer.encode(item).ids[:room], *self.item.after]

    def pairs(self, question: str, items: Sequence[str]) -> Pairs:
        """The pairs of a request.

        Raises:
            InvalidArgumentError: If the query is too long.
        """
        query = self.framed_query(question)
        numbers: dict[tuple[int, ...], int] = {}
        places = [numbers.setdefault(tuple(self.pair(query, item)), len(numbers)) for item in items]
        windows = [list(pair) for pair in numbers]
        return Pairs(windows, [len(query) if self.two_types else len(pair) for pair in windows], places)

    def scores(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of outputs, any shape."""
        if self.activation == "identity":
            return outputs
        small = np.exp(-np.abs(outputs))  # never above 1, so nothing overflows
        either: NDArray[np.float64] = np.where(outputs >= 0, 1.0, small) / (1.0 + small)
        return either


def texts_of(request: v1.RerankRequest) -> tuple[str, list[str]]:
    """Query and items of a request.

    Raises:
        UnsupportedError: If one holds an image.
        InvalidArgumentError: If an item of their content is empty.
    """
    items = [dialog.text_of(item, f"items[{index}]") for index, item in enumerate(request.items)]
    return dialog.text_of(request.query, "query"), items


def rerank_response(
    request: v1.RerankRequest, scores: Sequence[float], *, outputs: Sequence[float] | None = None
) -> v1.RerankResponse:
    """The answer to a request: best first, equal ones in the order of the request.

    Args:
        request: Says how many.
        scores: Of all items, in their order.
        outputs: What orders them; unset means the scores.
    """
    by = scores if outputs is None else outputs
    order = sorted(range(len(scores)), key=lambda index: (-by[index], index))
    most = request.max_num_results if request.HasField("max_num_results") else len(order)
    data = [v1.RerankData(index=index, relevance_score=scores[index]) for index in order[:most]]
    return v1.RerankResponse(data=data)


def rerank_model(folder: Path, *, architecture: str) -> RerankModel:
    """Tokenizer, frames and windows of a rerank model's folder.

    Raises:
        InvalidArgumentError: If the folder contradicts itself, or asks for what is not supported.
    """
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    tokenizer = encoder_tokenizer(folder)
    window = window_of(folder, config)
    if architecture == COLBERT:
        settings = LateInteractionConfig.read(folder)  # the engine has read it before: no error to be expected
        return RerankModel(
            tokenizer=tokenizer,
            query=Frame([*tokenizer.before, settings.query_marker], tokenizer.after),
            item=Frame([*tokenizer.before, settings.item_marker], tokenizer.after),
            context=min(settings.item_length, window),
            query_context=window,
            apart=True,
        )
    frame = tokenizer.pair
    if frame is None:
        message = f"{folder}: its tokenizer does not say how two texts are joined; save it with its post-processor"
        raise InvalidArgumentError(message, field="provider_model_id")
    return RerankModel(
        tokenizer=tokenizer,
        query=Frame(frame.before, frame.between),
        item=Frame((), frame.after),
        context=window,
        query_context=window,
        two_types=frame.second_type == 1,
        activation=_activation(folder, config),
    )


def _activation(folder: Path, config: dict[str, Any]) -> Activation:
    """See the module.

    Raises:
        InvalidArgumentError: If it is another one.
    """
    ours = config.get("sentence_transformers") or {}
    stated = ours.get("activation_fn") or config.get("sbert_ce_default_activation_function")
    if not stated:
        return "sigmoid"
    name = str(stated).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        message = f"{folder / 'config.json'}: activation {stated!r} is not supported; known: {known}"
        raise InvalidArgumentError(message, field="provider_model_id")
    return _ACTIVATIONS[name]
