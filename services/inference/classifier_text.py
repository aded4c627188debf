"""The text side of classifiers: texts to token windows, and windows' outputs to classes."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamastack import v1
from services.inference.encoder_tokenizers import EncoderTokenizer, encoder_tokenizer
from services.inference.provider import Facts
from stack_client.errors import InvalidArgumentError

DEFAULT_MAX_WINDOWS = 64
_MULTI_LABEL = "multi_label_classification"
_UNSET_LENGTH = 1_000_000  # from here on, a tokenizer's length means that nobody set one


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The classes of a classifier."""

    names: tuple[str, ...]
    """By index."""
    exclusive: bool = True
    """Whether a text has one class (softmax) or any number of them (a sigmoid each)."""

    def probabilities(self, logits: NDArray[np.float64], *, temperature: float) -> NDArray[np.float64]:
        """Of each window and class, (W, C)."""
        scaled = logits / temperature
        if not self.exclusive:
            small = np.exp(-np.abs(scaled))  # never above 1, so nothing overflows
            either: NDArray[np.float64] = np.where(scaled >= 0, 1.0, small) / (1.0 + small)
            return either
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        result: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return result


@dataclass(frozen=True, kw_only=True)
class ClassifierModel:
    """The text side of a classifier whose weights the engine holds."""

    tokenizer: EncoderTokenizer
    labels: Labels
    context: int
    """Tokens of a window, special tokens included."""
    overlap: int
    """Tokens that neighbouring windows share unless the caller says otherwise."""

    @property
    def facts(self) -> Facts:
        """Facts for the model's metadata."""
        return {"labels": list(self.labels.names), "window": self.context, "overlap": self.overlap}

    @property
    def room(self) -> int:
        """Tokens of a text in one window."""
        return self.context - len(self.tokenizer.before) - len(self.tokenizer.after)

    def framed(self, ids: Sequence[int]) -> list[int]:
        """A window's ids with the special tokens around them."""
        return [*self.tokenizer.before, *ids, *self.tokenizer.after]


@dataclass(frozen=True, kw_only=True)
class Window:
    """Tokens from `first` to before `last` of one text."""

    first: int
    last: int
    start: int
    """First character, in code points."""
    end: int
    """One past the last."""


@dataclass(frozen=True, kw_only=True)
class CutText:
    """A text cut into windows; at least one, also of an empty text."""

    windows: tuple[Window, ...]
    ids: Sequence[int]
    """Tokens of the whole text."""

    @property
    def read(self) -> int:
        """Tokens that the windows cover, each counted once."""
        return self.windows[-1].last - self.windows[0].first

    @property
    def coverage(self) -> float:
        """Share of the text's tokens that the windows cover."""
        return self.read / len(self.ids) if self.ids else 1.0


class TextCutter:
    """Cuts the texts of one request into windows.

    Args:
        request: Says how.
        room: Tokens of a text per window.
        overlap: Tokens that neighbouring windows share unless the request says otherwise.

    Raises:
        InvalidArgumentError: If the overlap leaves no room to move on.
    """

    def __init__(self, request: v1.ClassifyRequest, *, room: int, overlap: int) -> None:
        self._room = room
        self._truncation = request.text_truncation
        self._windowed = request.HasField("windows")
        windows = request.windows
        self._most = windows.max_windows if windows.HasField("max_windows") else DEFAULT_MAX_WINDOWS
        overlap = windows.overlap if windows.HasField("overlap") else overlap
        if overlap >= room:
            message = f"windows.overlap is {overlap}; a window has room for {room} tokens, give less"
            raise InvalidArgumentError(message, field="windows.overlap")
        self._stride = room - overlap

    def cut(self, text: str, ids: Sequence[int], spans: Sequence[tuple[int, int]], *, index: int) -> CutText:
        """Cut one text.

        Args:
            text: It.
            ids: Its tokens.
            spans: Their characters.
            index: Its place in the request, for errors.

        Raises:
            InvalidArgumentError: If it is too long and the request allows neither windows nor truncation.
        """
        count, room = len(ids), self._room
        if count <= room:
            ranges = [(0, count)]
        elif self._windowed:
            # The last one ends with the text; none begins where another has read to the end already.
            number = min(1 + math.ceil((count - room) / self._stride), self._most)
            ranges = [(at * self._stride, min(at * self._stride + room, count)) for at in range(number)]
        elif self._truncation == v1.TEXT_TRUNCATION_END:
            ranges = [(0, room)]
        elif self._truncation == v1.TEXT_TRUNCATION_START:
            ranges = [(count - room, count)]
        else:
            raise InvalidArgumentError(
                f"texts[{index}] has {count} tokens, the model reads {room} at once; "
                "set windows to read it whole, or text_truncation to start or end",
                reason="CONTEXT_LENGTH_EXCEEDED",
                field=f"texts[{index}]",
            )
        windows = tuple(
            Window(
                first=first,
                last=last,
                # Characters before the first token and after the last one belong to the outer windows.
                start=spans[first][0] if first else 0,
                end=spans[last - 1][1] if last < count else len(text),
            )
            for first, last in ranges
        )
        return CutText(windows=windows, ids=ids)


def classification(
    cut: CutText, logits: NDArray[np.float64], *, labels: Labels, temperature: float
) -> v1.Classification:
    """Classes of one text from its windows' raw outputs (W, C).

    The label is the most likely class. Of several windows of which any has another most likely class than class 0, it
    is that of them with the highest probability: one bad window makes a text bad.
    """
    probabilities = labels.probabilities(logits, temperature=temperature)
    highest = probabilities.max(axis=0)
    winners = set(probabilities.argmax(axis=1).tolist())
    candidates = (winners - {0} or {0}) if labels.exclusive else set(range(len(labels.names)))
    best = max(sorted(candidates), key=lambda index: highest[index])
    return v1.Classification(
        label=labels.names[best],
        scores=dict(zip(labels.names, highest.tolist(), strict=True)),
        tokens=cut.read,
        windows=[
            v1.ClassifiedWindow(start=window.start, end=window.end, logits=row)
            for window, row in zip(cut.windows, logits.tolist(), strict=True)
        ],
        coverage=cut.coverage,
    )


def cut_texts(model: ClassifierModel, request: v1.ClassifyRequest) -> list[CutText]:
    """The texts of a request as windows.

    Raises:
        InvalidArgumentError: See `TextCutter`.
    """
    cutter = TextCutter(request, room=model.room, overlap=model.overlap)
    return [cutter.cut(text, *model.tokenizer.encode(text), index=index) for index, text in enumerate(request.texts)]


def classify_response(
    request: v1.ClassifyRequest, cuts: Sequence[CutText], logits: NDArray[np.float64], *, labels: Labels
) -> v1.ClassifyResponse:
    """The answer to a request from the outputs of all windows of all texts in order, (W, C)."""
    temperature = request.temperature if request.HasField("temperature") else 1.0
    ends = np.cumsum([len(cut.windows) for cut in cuts])
    results = [
        classification(cut, part, labels=labels, temperature=temperature)
        for cut, part in zip(cuts, np.split(logits, ends[:-1]), strict=True)
    ]
    tokens = sum(window.last - window.first for cut in cuts for window in cut.windows)
    usage = v1.Usage(prompt_tokens=tokens, total_tokens=tokens)
    return v1.ClassifyResponse(results=results, usage=usage, labels=labels.names)


def classifier_model(folder: Path, *, classes: int) -> ClassifierModel:
    """Tokenizer, labels and window of a classifier's folder.

    Args:
        folder: A Hugging Face folder.
        classes: Outputs of its head.

    Raises:
        InvalidArgumentError: If the folder contradicts itself, or has no tokenizer.
    """
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    stated = config.get("id2label") or {str(index): f"LABEL_{index}" for index in range(classes)}
    names = tuple(str(stated.get(str(index), "")) for index in range(classes))
    if len(stated) != classes or len(set(names)) != classes or not all(names):
        message = f"{folder}: the head has {classes} classes, but id2label in config.json names {list(stated.values())}"
        raise InvalidArgumentError(message, field="provider_model_id")
    window = window_of(folder, config)
    return ClassifierModel(
        tokenizer=encoder_tokenizer(folder),
        labels=Labels(names=names, exclusive=config.get("problem_type") != _MULTI_LABEL),
        context=window,
        overlap=config.get("window_overlap", window // 4),
    )


def window_of(folder: Path, config: Mapping[str, Any]) -> int:
    """Tokens that an encoder reads at once: the least of what its tokenizer says and what it has positions for.

    Args:
        folder: A Hugging Face folder.
        config: What its config.json holds.
    """
    settings = folder / "tokenizer_config.json"
    length = json.loads(settings.read_text()).get("model_max_length", _UNSET_LENGTH) if settings.exists() else 0
    most = config["max_position_embeddings"]
    return int(min(length, most)) if 0 < length < _UNSET_LENGTH else int(most)
