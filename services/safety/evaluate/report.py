"""The figures for people: Markdown, and curves as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.safety.evaluate.figures import scores
from services.safety.evaluate.metrics import pr_curve, roc_curve
from services.safety.evaluate.running import Outcome
from stack_client.errors import FailedPreconditionError


def markdown(report: Mapping[str, Any]) -> str:
    """All figures of a run."""
    lines = ["# Shields, measured", ""]
    lines += [f"- {note}" for note in report["notes"]]
    for shield, entry in report["shields"].items():
        label = " (embedded baseline, no guard model)" if entry["baseline"] else ""
        lines += ["", f"## {shield}{label}", ""]
        for table in entry["tables"]:
            lines += _table(table)
        lines += ["### Flagged by source and language", "", "| texts | flagged |", "|---|---|"]
        lines += [f"| {name} | {_share(share)} |" for name, share in entry["sources"].items()]
        if entry["grid"]:
            lines += ["", "### Disguises, each with harmless controls", ""]
            lines += ["| disguise | surface | found | false alarms |", "|---|---|---|---|"]
            lines += [
                f"| {name} | {surface} | {_share(cell['recall'])} | {_share(cell['false_alarm_rate'])} |"
                for surface, cells in entry["grid"].items()
                for name, cell in cells.items()
            ]
    return "\n".join(lines) + "\n"


def draw(outcomes: Mapping[str, Sequence[Outcome]], folder: Path) -> list[Path]:
    """ROC and precision-recall curves, one picture per surface, task and split, all shields in it.

    Raises:
        FailedPreconditionError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 (the extra `eval` only)
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(
            'curves need matplotlib: pip install "llama-stack-mesh[eval]"; the figures are written without it'
        ) from error
    drawn = []
    for surface, task, split in _groups(outcomes):
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        roc, pr = figure.subplots(1, 2)
        for shield, found in outcomes.items():
            group = [one for one in found if (one.text.surface, one.text.split) == (surface, split)]
            positives = scores([one for one in group if one.text.task == task])
            negatives = scores([one for one in group if not one.text.task])
            if len(positives) and len(negatives):
                roc.step(*roc_curve(positives, negatives), where="post", label=shield)
                pr.step(*pr_curve(positives, negatives), where="post", label=shield)
        roc.set(xlabel="false positives", ylabel="found", xscale="symlog", xlim=(0, 1), ylim=(0, 1.02), title="ROC")
        roc.set_xscale("symlog", linthresh=0.01)
        pr.set(xlabel="found", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="precision and recall")
        roc.legend(loc="lower right")
        figure.suptitle(f"{surface}, {task}, {split}")
        path = folder / f"curves-{surface}-{task}-{split}.png"
        figure.savefig(path, dpi=110)
        drawn.append(path)
    return drawn


def _groups(outcomes: Mapping[str, Sequence[Outcome]]) -> list[tuple[str, str, str]]:
    found = {(one.text.surface, one.text.task, one.text.split) for group in outcomes.values() for one in group}
    return sorted(group for group in found if group[1])


def _table(table: Mapping[str, Any]) -> list[str]:
    confusion = table["confusion"]
    lines = [
        f"### {table['surface']}, {table['task']}, {table['split']}",
        "",
        "| | flagged | passed |",
        "|---|---|---|",
        f"| harmful | {confusion['caught']} | {confusion['missed']} |",
        f"| harmless | {confusion['false_alarms']} | {confusion['passed']} |",
        "",
        "| figure | value [95 %] |",
        "|---|---|",
        f"| precision | {_share(table['precision'])} |",
        f"| recall | {_share(table['recall'])} |",
        f"| false alarms | {_share(table['false_alarm_rate'])} |",
        f"| F1 | {table['f1']:.3f} |",
        f"| ROC AUC | {_share(table['roc_auc'])} |",
        f"| PR AUC | {_share(table['pr_auc'])} |",
        f"| ECE | {table['ece']:.3f} |",
    ]
    for rate in (1, 5):
        entry = table[f"at_{rate}_percent"]
        here = f", false alarms here {_share(entry['false_alarm_rate'])}" if "false_alarm_rate" in entry else ""
        line = f"recall at {rate} % false positives, threshold from {entry['threshold_from']}"
        lines.append(f"| {line} | {_share(entry['recall'])}{here} |")
    times = ", ".join(f"{name} {value:g}" for name, value in table["latency_ms"].items())
    lines += [f"| not judged | {table['not_judged']} |", f"| milliseconds | {times} |", ""]
    lines += [f"Warning: {warning}." for warning in table["warnings"]]
    return [*lines, ""]


def _share(entry: Mapping[str, float]) -> str:
    count = f" (n={entry['n']:.0f})" if "n" in entry else ""
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]{count}"
