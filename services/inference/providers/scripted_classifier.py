"""Classifiers that answer from a script, for tests and demonstrations; see `scripted`.

The classes stand in the model's metadata as `labels`, the rules as `script`; the first rule that matches a window's
text scores it. Without a rule that matches, class 0 has probability 1.

    {"labels": ["benign", "malicious"], "script": [{"match": "ignore all", "scores": {"malicious": 0.97}}]}

What the scores leave of 1 is shared by the classes that they do not name. `hang` waits for ever and `error` ends the
call with UNAVAILABLE and this message, as for text models. Tokens are words; `window` says how many are read at once
(512 unless given), and there are no special tokens. The raw outputs are the logarithms of the probabilities.
"""

import asyncio
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llamastack import v1
from services.inference.classifier_text import CutText, Labels, TextCutter, classify_response
from services.inference.provider import Facts
from stack_client.content import plain
from stack_client.errors import InvalidArgumentError, UnavailableError

WORD = re.compile(r"\S+")
WINDOW = 512
LEAST = 1e-9
"""Stands for a probability of 0, whose logarithm would be infinite."""


@dataclass(frozen=True, kw_only=True)
class ClassRule:
    """One rule of a script; the module's docstring says what the fields mean."""

    match: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    hang: bool = False
    error: str = ""


class ScriptedClassifier:
    """A classifier and its script.

    Args:
        metadata: Of the model.

    Raises:
        InvalidArgumentError: If labels, script or window make no sense.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        labels = metadata.get("labels", ["benign", "malicious"])
        if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
            raise InvalidArgumentError(f"labels is {labels!r}; give a list of names", field="metadata.labels")
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise InvalidArgumentError(f"labels is {labels!r}; give two or more, each once", field="metadata.labels")
        window = plain(metadata.get("window", WINDOW))
        if not isinstance(window, int) or window < 1:
            raise InvalidArgumentError(f"window is {window!r}; give a number of words", field="metadata.window")
        self.labels = Labels(names=tuple(labels))
        self.window = window
        self._rules = [_rule(entry, labels) for entry in metadata.get("script", [])]
        self._hash = hashlib.sha256(json.dumps([labels, metadata.get("script", [])], sort_keys=True).encode())

    @property
    def facts(self) -> Facts:
        """Facts for the model's metadata."""
        return {
            "labels": list(self.labels.names),
            "window": self.window,
            "overlap": self.window // 4,
            "architecture": "scripted",
            "weights_hash": f"sha256:{self._hash.hexdigest()}",
        }

    async def classify(self, request: v1.ClassifyRequest) -> v1.ClassifyResponse:
        """Score every window by the first rule that matches it."""
        cutter = TextCutter(request, room=self.window, overlap=self.window // 4)
        cuts: list[CutText] = []
        rows: list[list[float]] = []
        for index, text in enumerate(request.texts):
            spans = [word.span() for word in WORD.finditer(text)]
            cuts.append(cutter.cut(text, range(len(spans)), spans, index=index))
            rows.extend([await self._row(text[window.start : window.end]) for window in cuts[-1].windows])
        return classify_response(request, cuts, np.array(rows), labels=self.labels)

    async def _row(self, text: str) -> list[float]:
        """Logarithms of the classes' probabilities."""
        rule = next((rule for rule in self._rules if re.search(rule.match, text)), None)
        if rule is None:
            return _logarithms([1.0, *[0.0] * (len(self.labels.names) - 1)])
        if rule.hang:
            await asyncio.Event().wait()
        if rule.error:
            raise UnavailableError(rule.error)
        unnamed = len(self.labels.names) - len(rule.scores)
        share = (1.0 - sum(rule.scores.values())) / unnamed if unnamed else 0.0
        return _logarithms([rule.scores.get(name, share) for name in self.labels.names])


def _logarithms(probabilities: Sequence[float]) -> list[float]:
    return [math.log(max(probability, LEAST)) for probability in probabilities]


def _rule(entry: object, labels: Sequence[str]) -> ClassRule:
    where = "metadata.script"
    if not isinstance(entry, dict):
        raise InvalidArgumentError(f"a rule of a script is a JSON object, not {entry!r}", field=where)
    if unknown := entry.keys() - ClassRule.__dataclass_fields__.keys():
        known = ", ".join(ClassRule.__dataclass_fields__)
        message = f"unknown key {min(unknown)!r} in a rule of a classifier's script; known are {known}"
        raise InvalidArgumentError(message, field=where)
    rule = ClassRule(**entry)
    try:
        re.compile(rule.match)
    except (re.error, TypeError) as error:
        message = f"match {rule.match!r} is no regular expression: {error}"
        raise InvalidArgumentError(message, field=where) from error
    scores = rule.scores
    numbers = isinstance(scores, dict) and all(isinstance(score, int | float) for score in scores.values())
    if not numbers or not set(scores) <= set(labels):
        message = f"scores of a rule is {scores!r}; give numbers by label, of {', '.join(labels)}"
        raise InvalidArgumentError(message, field=where)
    total = sum(scores.values())
    whole = len(scores) == len(labels) and not math.isclose(total, 1.0, abs_tol=1e-6)
    if any(score < 0 for score in scores.values()) or total > 1.0 + 1e-6 or whole:
        message = f"scores of a rule is {scores!r}; they are probabilities, and all together they are 1"
        raise InvalidArgumentError(message, field=where)
    return rule
