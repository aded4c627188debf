"""Labelled texts: a user's JSON lines, and the dev and test sources that lie in packages."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.safety.baseline import card, planting
from services.safety.baseline.content_labels import CONTENT_CLASSES
from services.safety.baseline.corpora import MissingCorpusError, Row
from services.safety.baseline.splits import SPLITS, Corpora, Split
from stack_client.errors import InvalidArgumentError
from stack_client.safety import SURFACES

_KEYS = frozenset({"text", "label", "category", "surface", "language", "source"})
_HARMLESS = frozenset({"benign", "safe", "harmless", "0", "false", "none"})
_HARMFUL = frozenset(
    {"unsafe", "harmful", "malicious", "attack", "injection", "jailbreak", "1", "true", *CONTENT_CLASSES}
)


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A text with what is true of it."""

    text: str
    """The text."""
    category: str
    """`benign`, `injection`, or a class of harmful content."""
    surface: str
    """Where it stands."""
    source: str
    """Its corpus."""
    split: str
    """`dev` for thresholds, `test` for figures."""
    language: str = "en"
    """BCP 47 tag."""

    @property
    def task(self) -> str:
        """`injection`, `content`, or empty for harmless texts, which count in both."""
        return {"benign": "", "injection": "injection"}.get(self.category, "content")


def read_file(path: Path) -> list[Labelled]:
    """JSON lines with `text` and `label`, and optionally `category`, `surface`, `language`, `source`; always test.

    Raises:
        InvalidArgumentError: If a line is not such a record; names file and line.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            found.append(_record(line, where=f"{path}:{number}", source=path.stem))
    if not found:
        raise InvalidArgumentError(f"{path} holds no labelled text")
    return found


def _record(line: str, *, where: str, source: str) -> Labelled:
    try:
        raw: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(f"{where}: not JSON: {error}") from error
    if not isinstance(raw, dict) or not set(raw) <= _KEYS or not isinstance(raw.get("text"), str) or "label" not in raw:
        raise InvalidArgumentError(f"{where}: a record has text and label, and may have {', '.join(sorted(_KEYS))}")
    surface = raw.get("surface") or "user"
    if surface not in SURFACES:
        raise InvalidArgumentError(f"{where}: no surface {surface!r}; there are: {', '.join(SURFACES)}")
    label = str(raw["label"]).lower()
    if label not in _HARMLESS | _HARMFUL:
        known = ", ".join(sorted(_HARMLESS | _HARMFUL))
        raise InvalidArgumentError(f"{where}: label {raw['label']!r} is neither harmless nor harmful; known: {known}")
    harmless = label in _HARMLESS
    category = "benign" if harmless else str(raw.get("category") or raw["label"]).lower()
    if category not in {"benign", "injection", *CONTENT_CLASSES}:
        category = "injection" if "inject" in category or "jailbreak" in category else "other"
    return Labelled(
        text=raw["text"], category=category, surface=surface, source=raw.get("source") or source, split="test",
        language=raw.get("language") or "en",
    )  # fmt: skip


def packaged(wanted: Sequence[Split] = ("dev", "test")) -> tuple[list[Labelled], list[str]]:
    """Dev and test texts of the corpora that are installed, and what is missing, as sentences.

    Injections of the mail corpus and the CTF stand in passages, those of bastioncorpus for tools also in the documents
    of tau2; each passage is there a second time without its attack.
    """
    library = Corpora(splits=("train", "dev", "test"))
    found: list[Labelled] = []
    missing: list[str] = []
    planted = {"dev": (card.PLANTED, card.HOSTS), "test": (("bastion/tool",), "tau2")}
    only_hosts = {hosts for _, hosts in planted.values()} | {"prompt-armor/llmail"}
    for split in wanted:
        for source in SPLITS[split]:
            if source not in only_hosts:
                found += _rows(library, source, split, missing)
        attacks, hosts = planted.get(split, ((), ""))
        found += _planted(library, attacks, hosts, split, missing)
    return found, sorted(set(missing))


def _rows(library: Corpora, source: str, split: Split, missing: list[str]) -> list[Labelled]:
    try:
        return [_labelled(row, split) for row in library.rows(source)]
    except MissingCorpusError as error:
        missing.append(str(error))
        return []


def _planted(library: Corpora, attacks: Sequence[str], hosts: str, split: Split, missing: list[str]) -> list[Labelled]:
    try:
        # Their turns alternate, as when the card was made, so that both are planted whatever the number of hosts.
        rows = [library.rows(name) for name in attacks]
        mixed = [row for group in zip(*rows, strict=False) for row in group if row.injection]
        pairs = planting.plant(mixed, library.rows(hosts))
    except MissingCorpusError as error:
        missing.append(str(error))
        return []
    return [
        _labelled(replace(row, source=f"{row.source}, planted" if row.injection else row.source), split)
        for row in pairs
    ]


def _labelled(row: Row, split: Split) -> Labelled:
    return Labelled(
        text=row.text, category=row.category, surface=row.surface, source=row.source, split=split, language=row.language
    )
