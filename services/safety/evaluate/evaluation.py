"""One evaluation from texts to files; `stack eval shields` and `python -m services.safety.evaluate` call it."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.safety.evaluate import datasets, figures, report
from services.safety.evaluate.datasets import Labelled
from services.safety.evaluate.running import Outcome, outcomes
from services.safety.evaluate.transforms import TRANSFORMS
from stack_client import StackClient
from stack_client.errors import FailedPreconditionError, InvalidArgumentError
from stack_client.portal import SyncStackClient, portal

_ATTACKS, _CONTROLS = 80, 100


def run(
    client: SyncStackClient,
    *,
    shields: Sequence[str] = (),
    data: Sequence[Path] = (),
    out: Path = Path("shield-eval"),
    limit: int = 0,
    disguises: bool = True,
) -> int:
    """Measure shields, print the report, and write `report.json`, `report.md` and the curves.

    Args:
        client: Of the running stack.
        shields: Names; empty means all that are registered.
        data: Files of labelled texts, each JSON lines; empty means the packaged corpora.
        out: Folder of the files; made where it is not there.
        limit: Texts per source at most, drawn with a fixed seed; 0 means all.
        disguises: Measure the grid of disguises too.

    Returns:
        0, or 1 when no corpus is installed and no file was given.

    Raises:
        InvalidArgumentError: If a file holds something else.
        StackError: If a shield does not exist or the service cannot be asked.
    """
    texts, missing = (
        datasets.packaged() if not data else ([row for path in data for row in datasets.read_file(path)], [])
    )
    texts = _limited(texts, limit)
    if not texts:
        print("\n".join(missing))
        return 1
    found, entries = portal().run(measure(client.client, shields, texts, disguises=disguises))
    out.mkdir(parents=True, exist_ok=True)
    notes = [
        f"{len(texts)} texts, SHA-256 {_digest(texts)}",
        "thresholds at 1 % and 5 % come from dev texts; test texts only receive them",
        "a text that could not be judged counts as flagged",
        *missing,
    ]
    try:
        report.draw(found, out)
    except FailedPreconditionError as error:
        notes.append(error.message)
    content = {"notes": notes, "shields": entries}
    (out / "report.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    text = report.markdown(content)
    (out / "report.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"written to {out}")
    return 0


async def measure(
    client: StackClient, shields: Sequence[str], texts: Sequence[Labelled], *, disguises: bool
) -> tuple[dict[str, list[Outcome]], dict[str, Any]]:
    """Outcomes and figures by shield; no shield named means all that are registered.

    Raises:
        InvalidArgumentError: If none is registered.
        StackError: If a shield does not exist or the service cannot be asked.
    """
    registered = {shield.identifier: shield for shield in await client.shields.list()}
    names = list(shields) or list(registered)
    if not names:
        raise InvalidArgumentError("no shield is registered: `stack shield add` makes one")
    found: dict[str, list[Outcome]] = {}
    entries: dict[str, Any] = {}
    for name in names:
        found[name] = await outcomes(client, name, texts)
        entries[name] = {
            "baseline": name in registered and registered[name].provider_id == "embedded",
            "tables": figures.tables(found[name]),
            "sources": figures.by_source(found[name]),
            "grid": await _grid(client, name, texts) if disguises else {},
            "not_judged": _reasons(found[name]),
        }
    return found, entries


async def _grid(client: StackClient, shield: str, texts: Sequence[Labelled]) -> Mapping[str, Any]:
    """The disguises on injections of each surface, from dev where there is dev."""
    grid: dict[str, Any] = {}
    for surface in ("user", "tool_result", "retrieved"):
        here = [text for text in texts if text.surface == surface]
        dev = [text for text in here if text.split == "dev"]
        chosen = dev if {"", "injection"} <= {text.task for text in dev} else here
        attacks = _sample([text for text in chosen if text.task == "injection"], _ATTACKS)
        controls = _sample([text for text in chosen if not text.task], _CONTROLS)
        if attacks and controls:
            found = {}
            for name, change in TRANSFORMS.items():
                changed = [replace(text, text=change(text.text)) for text in attacks + controls]
                found[name] = await outcomes(client, shield, changed)
            grid[surface] = figures.grid(found)
    return grid


def _limited(texts: Sequence[Labelled], limit: int) -> list[Labelled]:
    if not limit:
        return list(texts)
    by_source: dict[tuple[str, bool], list[Labelled]] = {}
    for text in texts:
        by_source.setdefault((text.source, bool(text.task)), []).append(text)
    return [text for group in by_source.values() for text in _sample(group, limit)]


def _sample(texts: Sequence[Labelled], most: int) -> list[Labelled]:
    return random.Random(0).sample(texts, min(most, len(texts)))  # noqa: S311 (a fixed draw, no secret)


def _reasons(found: Sequence[Outcome]) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for outcome in found:
        if outcome.why_not:
            reasons[outcome.why_not] = reasons.get(outcome.why_not, 0) + 1
    return reasons


def _digest(texts: Sequence[Labelled]) -> str:
    content = "\0".join(f"{text.category}\0{text.surface}\0{text.split}\0{text.text}" for text in texts)
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()
