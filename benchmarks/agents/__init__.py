"""What a durable turn costs, beside LangGraph and the OpenAI Agents SDK with their SQLite stores.

    python -m benchmarks agents

A turn is model, tool, model; model and tool cost nothing. The peers are installed once into a virtual environment of
their own in the cache folder; rounds of all are interleaved in one run.
"""

import asyncio
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from statistics import median

from benchmarks.agents.ours import many_sessions, one_session

ROUNDS = 5
TURNS = 150
SESSIONS = 100
PACKAGES = ("langgraph==1.2.22", "langgraph-checkpoint-sqlite", "openai-agents==0.24.0")
BUDGET_MS = 2.0


def main() -> None:
    """Measure and print."""
    python = _peers()
    ours: list[tuple[float, float, float]] = []
    theirs: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        ours.append(asyncio.run(one_session(TURNS)))
        for name, figure in _round(python).items():
            theirs.setdefault(name, []).append(figure)
    cpu = median(one[0] for one in ours)
    print(
        f"durable turn (SQLite), CPU: {cpu:.2f} ms, budget {BUDGET_MS:g} ms; wall {median(o[1] for o in ours):.2f} ms"
    )
    print(f"from a tool's result to the next call of the model: {median(one[2] for one in ours):.2f} ms wall")
    for name, figures in theirs.items():
        print(f"{name}: {median(figures):.2f} ms CPU a turn; ours costs {cpu / median(figures):.2f} of it")
    turns, events, each = asyncio.run(many_sessions(SESSIONS, 5))
    print(f"{SESSIONS} sessions at once: {turns:.0f} turns/s, {events:.0f} events/s, {each:.2f} ms CPU a turn")


def _peers() -> Path:
    """The Python with the peers."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llama-stack-mesh" / "bench-agents"
    python = cache / "bin" / "python"
    if not python.exists():
        venv.create(cache, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def _round(python: Path) -> dict[str, float]:
    script = Path(__file__).with_name("peers.py")
    done = subprocess.run([python, script, str(TURNS)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the peers fail: {done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures
