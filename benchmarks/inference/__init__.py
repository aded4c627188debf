"""Our engine beside its peers on SmolLM2-135M, in interleaved rounds: `python -m benchmarks inference`.

Every round runs every engine once, each in a process of its own; ratios are taken inside a round and reported as median
with minimum and maximum. Peers are used where they are found: `python -m benchmarks.inference.install` puts them into a
folder, which `PEERS` names (`.venv-peers` by default). `ENGINES` names those to run, separated by commas; unset runs
all. Rounds that begin or end at a load average above `MOST_LOAD` are
dropped before anything of them is looked at.
"""

import os
import statistics
import tempfile
from pathlib import Path

from benchmarks import quality
from benchmarks.inference.engines import Engine, found
from benchmarks.measure import report
from services.llama.checkpoint import find_packaged, prepare

ROUNDS = int(os.environ.get("ROUNDS", "5"))
MOST_LOAD = float(os.environ.get("MOST_LOAD", "3"))
FOLDER = Path(os.environ.get("PEERS", ".venv-peers"))
ENGINES = [name for name in os.environ.get("ENGINES", "").split(",") if name]
OURS = "ours int8"

Rounds = list[dict[str, dict[str, float]]]


def main() -> None:
    """Measure, then print medians, ratios and what stands beside them."""
    with tempfile.TemporaryDirectory() as scratch:
        engines = [engine for engine in found(FOLDER, Path(scratch)) if engine.name in (ENGINES or [engine.name])]
        for engine in engines:
            engine.prepare()
        rounds: Rounds = []
        for number in range(ROUNDS):
            figures = _round(engines, number)
            if figures is not None:
                rounds.append(figures)
        if not rounds:
            print(f"every round began or ended at a load above {MOST_LOAD:g}; run it on a quieter machine")
            return
        _print(engines, rounds)
        print("\nquality of our kernels, teacher-forced")
        cache = Path(scratch) / "cache"
        quality.kernels(prepare(find_packaged("smollm2-135m"), cache_dir=cache), cache_dir=cache)


def _round(engines: list[Engine], number: int) -> dict[str, dict[str, float]] | None:
    """Run every engine once, in an order that turns from round to round; None when the machine was too busy."""
    before = os.getloadavg()[0]
    turned = engines[number % len(engines) :] + engines[: number % len(engines)]
    figures = {engine.name: engine.measure(seed=number) for engine in turned}
    after = os.getloadavg()[0]
    # Our own two threads are part of the load at the end.
    kept = before <= MOST_LOAD and after <= MOST_LOAD + 2
    print(f"round {number}: load {before:.1f} to {after:.1f}{'' if kept else ' (dropped)'}", flush=True)
    return figures if kept else None


def _print(engines: list[Engine], rounds: Rounds) -> None:
    print(f"\n{len(rounds)} rounds, {os.cpu_count()} CPUs, two threads each")
    for engine in engines:
        print(f"\n{engine.name}: {engine.about}")
        for key in rounds[0][engine.name]:
            samples = [figures[engine.name][key] for figures in rounds]
            report(f"inference, {engine.name}, {key}", statistics.median(samples), "", samples=samples)
    if not any(engine.name == OURS for engine in engines):
        return
    print(f"\nratios of {OURS} to each peer, inside the round")
    for engine in engines:
        if engine.name == OURS:
            continue
        for key, value in rounds[0][OURS].items():
            if key not in rounds[0][engine.name] or not value:
                continue
            ratios = [figures[OURS][key] / figures[engine.name][key] for figures in rounds]
            report(f"inference, {OURS} / {engine.name}, {key}", statistics.median(ratios), "x", samples=ratios)
