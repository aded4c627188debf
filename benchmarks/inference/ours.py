"""Our engine in a process of its own: `python -m benchmarks.inference.ours FORMAT SEED [start]`."""

import argparse
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from benchmarks.inference import workloads
from services.inference.engine import commands
from services.inference.engine.request import EngineLimits, Request
from services.inference.packaged import find_packaged
from services.llama.checkpoint import load_text, prepare


def main() -> None:
    """Run every workload once, or only start and answer one token."""
    parser = argparse.ArgumentParser()
    parser.add_argument("format", choices=["int8", "int4", "bfloat16"])
    parser.add_argument("cache", type=Path)
    parser.add_argument("seed")
    parser.add_argument("--start", action="store_true")
    options = parser.parse_args()
    bench = Bench(options.format, options.cache)
    bench.run([workloads.single("warm")], outputs=1)
    if options.start:
        return
    bench.run(workloads.batch("warm"), outputs=4)
    workloads.say(**bench.measure(options.seed))


class Bench:
    """An engine on SmolLM2 and what is measured on it."""

    def __init__(self, form: Literal["int8", "int4", "bfloat16"], cache: Path) -> None:
        from services.inference.engine.engine import Engine  # noqa: PLC0415 (imports torch, which is timed)
        from services.inference.engine.loading import build_runner  # noqa: PLC0415

        folder = prepare(find_packaged("smollm2-135m"), cache_dir=cache)
        command = commands.Load(
            model="bench",
            kind="llm",
            path=folder,
            cache_dir=cache,
            dtype="bfloat16",
            quantisation="none" if form == "bfloat16" else form,
            device="cpu",
            threads=workloads.THREADS,
            limits=EngineLimits(cached_tokens=65_536),
        )
        built = build_runner(folder, command, report=logging.debug)
        self._engine = Engine(built.runner, limits=built.limits, tokenizer=load_text(folder).tokenizer)
        self._names = 0

    def measure(self, seed: str) -> dict[str, float]:
        """All workloads once."""
        figures: dict[str, float] = {}
        steps = self.run([workloads.single(seed)], outputs=workloads.OUTPUT).gaps
        figures["a decode tok/s"] = 1 / statistics.median(steps)
        for length in workloads.PREFILLS:
            result = self.run([workloads.prompt(length, seed)], outputs=1)
            figures[f"b prefill {length} tok/s"] = length / result.seconds
        for name, prompts in (
            ("c", workloads.batch(seed)),
            ("d cold", workloads.shared(seed)),
            ("d warm", workloads.shared(seed)),
        ):
            result = self.run(prompts, outputs=workloads.BATCH_OUTPUT)
            figures[f"{name} output tok/s"] = len(prompts) * workloads.BATCH_OUTPUT / result.seconds
            figures[f"{name} decode tok/s"] = len(prompts) / statistics.median(result.gaps)
            figures[f"{name} first token p50 ms"] = 1000 * statistics.median(result.firsts)
            figures[f"{name} first token p99 ms"] = 1000 * max(result.firsts)
            figures[f"{name} gap p99 ms"] = 1000 * statistics.quantiles(result.gaps, n=100)[98]
            figures[f"{name} prompt tokens computed"] = sum(map(len, prompts)) - result.cached
        return figures

    def run(self, prompts: Sequence[list[int]], *, outputs: int) -> "Result":
        """Add all at once and step to the end; no token stops a request."""
        started = workloads.clock()
        for prompt in prompts:
            self._names += 1
            self._engine.add(Request(request_id=str(self._names), prompt_ids=tuple(prompt), max_tokens=outputs))
        result = Result()
        last: dict[str, float] = {}
        while not self._engine.idle:
            emissions = self._engine.step()
            now = workloads.clock()
            for emission in emissions:
                if emission.request_id in last:
                    result.gaps.append(now - last[emission.request_id])
                else:
                    result.firsts.append(now - started)
                    result.cached += emission.cached_tokens
                last[emission.request_id] = now
        result.seconds = workloads.clock() - started
        return result


class Result:
    """Times of one run, in seconds."""

    def __init__(self) -> None:
        self.firsts: list[float] = []
        self.gaps: list[float] = []
        self.seconds = 0.0
        self.cached = 0


if __name__ == "__main__":
    main()
