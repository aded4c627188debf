"""The gateway: CPU per call, per streamed token and per stored response; what it adds to gRPC; memory; cold start.

All figures are of the gateway's own process, with the scripted model behind it. Rounds of HTTP and of gRPC, which goes
straight to the inference service, take turns in one run.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gateway.clients import Direct, Http, stack_of
from benchmarks.measure import cpu_seconds, report, report_median

ROUNDS = 5
CALLS = 400
STREAMS = 64
TOKENS = 400
WIDTHS = (1, 32, 128)


@dataclass
class Samples:
    """What the rounds measured, by name."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """Note a value."""
        self.values.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """The middle one."""
        return statistics.median(self.values[name])


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="gw-") as folder, stack_of(Path(folder)) as stack:
        report("gateway: cold start, CPU until healthy", stack.ready_cpu, "s", note="budget 1.5")
        asyncio.run(_measure(stack))
        memory = psutil.Process(stack.gateway_pid).memory_info().rss / 2**20
        report("gateway: memory after the run", memory, "MiB")


async def _measure(stack: Any) -> None:  # noqa: ANN401 - clients.Stack
    samples = Samples()
    async with Http(stack.url) as http, Direct(stack.inference) as direct:
        await _round(http, direct, stack, Samples(), calls=50)  # warm up
        for _ in range(ROUNDS):
            await _round(http, direct, stack, samples, calls=CALLS)
    _print(samples)


async def _round(http: Http, direct: Direct, stack: Any, samples: Samples, *, calls: int) -> None:  # noqa: ANN401
    for width in WIDTHS:
        cpu, seconds = await _timed(lambda: http.chat("say hello there"), calls, width, stack.gateway_pid)
        samples.add(f"call cpu {width}", cpu * 1000 / calls)
        _, straight = await _timed(lambda: direct.chat("say hello there"), calls, width, stack.gateway_pid)
        samples.add(f"throughput {width}", straight / seconds)
        samples.add(f"rate {width}", calls / seconds)
        streams = max(STREAMS // 4, width) if calls == CALLS else 8
        cpu, seconds = await _timed(lambda: http.stream(TOKENS), streams, width, stack.gateway_pid)
        samples.add(f"token cpu {width}", cpu * 1000 / (streams * TOKENS))
        _, straight = await _timed(lambda: direct.stream(TOKENS), streams, width, stack.gateway_pid)
        samples.add(f"stream throughput {width}", straight / seconds)
    if calls == CALLS:
        _, seconds = await _timed(http.slow, 2 * WIDTHS[-1], WIDTHS[-1], stack.gateway_pid)
        _, straight = await _timed(direct.slow, 2 * WIDTHS[-1], WIDTHS[-1], stack.gateway_pid)
        samples.add("slow throughput", straight / seconds)
    cpu, _ = await _timed(lambda: http.response("say hello there"), calls // 4, 1, stack.gateway_pid)
    samples.add("response cpu", cpu * 1000 / (calls // 4))
    for _ in range(20):
        samples.add("first http", await http.first_token())
        samples.add("first grpc", await direct.first_token())


async def _timed(call: Callable[[], Awaitable[None]], count: int, width: int, pid: int) -> tuple[float, float]:
    """CPU seconds of the gateway and seconds on the wall for so many calls, so many at a time."""
    left = count

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    before, began = cpu_seconds(pid), time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(width, count)):
            group.create_task(worker())
    return cpu_seconds(pid) - before, time.monotonic() - began


def _print(samples: Samples) -> None:
    for width in WIDTHS:
        report_median(
            f"gateway: CPU per chat call, {width} at once", samples.values[f"call cpu {width}"], "ms", note="budget 1"
        )
        report_median(
            f"gateway: CPU per streamed token, {width} at once",
            samples.values[f"token cpu {width}"],
            "ms",
            note="budget 0.03",
        )
        report_median(f"gateway: calls, {width} at once", samples.values[f"rate {width}"], "1/s")
        report_median(
            f"gateway: throughput of gRPC's, calls, {width} at once",
            samples.values[f"throughput {width}"],
            "ratio",
            note="a model that costs nothing; three processes share what two have",
        )
        report_median(
            f"gateway: throughput of gRPC's, streams, {width} at once",
            samples.values[f"stream throughput {width}"],
            "ratio",
            note="a model that costs nothing; three processes share what two have",
        )
    report_median(
        "gateway: throughput of gRPC's, 128 streams of 50 tokens/s each",
        samples.values["slow throughput"],
        "ratio",
        note="budget 0.95",
    )
    report_median("gateway: CPU per stored response", samples.values["response cpu"], "ms")
    added = samples.median("first http") - samples.median("first grpc")
    report("gateway: time to first token added over gRPC", added * 1000, "ms", samples=samples.values["first http"])
