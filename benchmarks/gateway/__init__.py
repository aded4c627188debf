"""The gateway: CPU per call, per streamed token and per stored response; what it adds to gRPC; memory; cold start.

All figures are of the gateway's own process, with the scripted model behind it. Rounds of HTTP and of gRPC, which goes
straight to the inference service, take turns in one run.
"""

import asyncio
import socket
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.gateway import peer
from benchmarks.gateway.clients import Direct, Http, Stack, stack_of
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
    program = peer.python()
    with tempfile.TemporaryDirectory(prefix="gw-") as folder, ExitStack() as running:
        stack = running.enter_context(stack_of(Path(folder)))
        other = None
        if program is None:
            print("the peer is left out: its packages cannot be installed here")
        else:
            serving = peer.running(program, Path(folder), backend=stack.url, port=_free_port())
            other = running.enter_context(serving)
            report("peer (llama-stack 0.2.12): cold start, CPU until healthy", other.ready_cpu, "s")
            memory = psutil.Process(other.pid).memory_info().rss / 2**20
            report("peer: memory at the start", memory, "MiB")
        report("gateway: cold start, CPU until healthy", stack.ready_cpu, "s", note="budget 1.5")
        asyncio.run(_measure(stack, other))
        memory = psutil.Process(stack.gateway_pid).memory_info().rss / 2**20
        report("gateway: memory after the run", memory, "MiB")


async def _measure(stack: Stack, other: peer.Peer | None) -> None:
    samples = Samples()
    async with Http(stack.url) as http, Direct(stack.inference) as direct:
        await _round(http, direct, stack, Samples(), calls=50)  # warm up
        for _ in range(ROUNDS):
            await _round(http, direct, stack, samples, calls=CALLS)
            if other is not None:
                await _peer_round(other, samples)
    _print(samples)
    if other is not None:
        _print_peer(samples)


async def _peer_round(other: peer.Peer, samples: Samples) -> None:
    """The same calls of the peer, fewer of them, for each takes longer."""
    async with Http(other.url, prefix="/v1/openai/v1") as http:
        for width in WIDTHS[:2]:
            calls, streams = CALLS // 4, max(4, width // 4)
            cpu, seconds = await _timed(lambda: http.chat("say hello there"), calls, width, other.pid)
            samples.add(f"peer call cpu {width}", cpu * 1000 / calls)
            samples.add(f"peer rate {width}", calls / seconds)
            cpu, _ = await _timed(lambda: http.stream(TOKENS), streams, width, other.pid)
            samples.add(f"peer token cpu {width}", cpu * 1000 / (streams * TOKENS))


def _print_peer(samples: Samples) -> None:
    for width in WIDTHS[:2]:
        report_median(f"peer: CPU per chat call, {width} at once", samples.values[f"peer call cpu {width}"], "ms")
        report_median(f"peer: CPU per streamed token, {width} at once", samples.values[f"peer token cpu {width}"], "ms")
        report_median(f"peer: calls, {width} at once", samples.values[f"peer rate {width}"], "1/s")
        for what in ("call", "token"):
            ratio = samples.median(f"{what} cpu {width}") / samples.median(f"peer {what} cpu {width}")
            report(f"gateway: CPU per {what} of the peer's, {width} at once", ratio, "ratio")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _round(http: Http, direct: Direct, stack: Stack, samples: Samples, *, calls: int) -> None:
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
