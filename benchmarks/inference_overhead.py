"""What the inference service costs beside the model: CPU per unary call and per streamed token, scripted provider."""

import asyncio
import resource
import tempfile
from pathlib import Path

from benchmarks.measure import cpu_seconds, report_median, served
from stack_client import StackClient

ROUNDS = 5
CALLS = 1000
STREAMS = 16
TOKENS = 2000
SETTINGS: dict[str, object] = {
    "inference": {"models": [{"model_id": "scripted", "provider_id": "scripted"}]},
}


def main() -> None:
    """Measure both sides."""
    with tempfile.TemporaryDirectory() as folder, served("inference", Path(folder), SETTINGS) as service:
        asyncio.run(_measure(service.pid, service.address))


async def _measure(pid: int, address: str) -> None:
    async with StackClient({"inference": address}) as client:
        await _calls(client, concurrency=4)
        for concurrency in (1, 16):
            server, own = [], []
            for _ in range(ROUNDS):
                before = cpu_seconds(pid), _own_cpu()
                await _calls(client, concurrency=concurrency)
                server.append((cpu_seconds(pid) - before[0]) / CALLS * 1e3)
                own.append((_own_cpu() - before[1]) / CALLS * 1e3)
            report_median(f"unary chat, {concurrency} at once, service CPU per call", server, "ms")
            report_median(f"unary chat, {concurrency} at once, client CPU per call", own, "ms")
        for streams in (1, STREAMS):
            server, own, messages = [], [], []
            for _ in range(ROUNDS):
                before = cpu_seconds(pid), _own_cpu()
                counts = await asyncio.gather(*(_stream(client) for _ in range(streams)))
                server.append((cpu_seconds(pid) - before[0]) / (streams * TOKENS) * 1e6)
                own.append((_own_cpu() - before[1]) / (streams * TOKENS) * 1e6)
                messages.append(streams * TOKENS / sum(counts))
            note = f"{messages[-1]:.1f} tokens per message"
            what = f"stream of {TOKENS} tokens, {streams} at once"
            report_median(f"{what}, service CPU per token", server, "us", note=note)
            report_median(f"{what}, client CPU per token", own, "us", note=note)


async def _calls(client: StackClient, *, concurrency: int) -> None:
    async def some() -> None:
        for _ in range(CALLS // concurrency):
            await client.inference.chat("scripted", "ping")

    await asyncio.gather(*(some() for _ in range(concurrency)))


async def _stream(client: StackClient) -> int:
    """Read one stream; returns its messages."""
    messages = 0
    async for _ in client.inference.stream_chat("scripted", "w " * TOKENS):
        messages += 1
    return messages


def _own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
