"""What shields cost: time to first and last token, guard calls and bytes per 500 tokens, verdicts per second.

The model is the real small one and the shield the embedded baseline, which runs on the same cores as the model; a
second guard stands for one on another machine: it takes its time and no cores of this one. Runs with and without are
interleaved. The streams are compared with what others do: judging the whole text so far after every chunk.
"""

import asyncio
import itertools
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import yaml

from benchmarks.measure import STACK, report, report_median
from llamastack import v1
from stack_client import StackClient, addresses
from stack_client.content import messages

MODEL = "smollm2-135m"
SHIELD = "baseline"
ROUNDS = 7
TOKENS = 500
CHUNK_TOKENS = 8  # what others judge at a time: one streamed event
VERDICTS = 160
QUESTION = "Tell me about the history of bread, in {} short paragraphs, question number {}."
REMOTE_SECONDS = 0.05  # of the guard that stands for one elsewhere
REMOTE = {"script": [{"reply": "safe", "token_seconds": REMOTE_SECONDS}]}
LOG_ONLY = {"action": "log"}  # a false alarm must not end a run that is timed
NUMBERS = itertools.count(1)


def main() -> None:
    """Measure over a stack of its own."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(Path(folder)))


async def _measure(home: Path) -> None:
    async with _stack(home) as client:
        await client.shields.register("log-only", provider_id="embedded", params=LOG_ONLY)
        await client.models.register("elsewhere", provider_id="scripted", metadata=REMOTE)
        await client.models.wait_ready("elsewhere")
        await client.shields.register("elsewhere", provider_id="llama-guard", provider_shield_id="elsewhere")
        await _latency(client)
        await _streams(client)
        await _throughput(client)


@asynccontextmanager
async def _stack(home: Path) -> AsyncIterator[StackClient]:
    environment = os.environ | {"STACK_HOME": str(home)}
    config = home / "stack.yaml"
    # No cache: every verdict is a judgement.
    config.write_text(yaml.safe_dump({"safety": {"cached_verdicts": 0}, "runtime": {"log_level": "WARNING"}}))
    command = [*STACK, "up", "--detach", "--config", str(config)]
    await asyncio.to_thread(subprocess.run, command, check=True, env=environment, capture_output=True)
    os.environ["STACK_HOME"] = str(home)
    try:
        async with StackClient(addresses.resolve()) as client:
            yield client
    finally:
        await asyncio.to_thread(subprocess.run, [*STACK, "down"], check=True, env=environment, capture_output=True)


async def _latency(client: StackClient) -> None:
    """Time to first and last token: bare, the dialog judged beside prefill and before it, the answer judged."""
    bare, beside, before, answer = [], [], [], []
    far_beside, far_before = [], []
    for _ in range(ROUNDS + 1):  # the first one warms up
        bare.append(await _chat(client))
        beside.append(await _chat(client, input_shields=["log-only"]))
        before.append(await _chat(client, first=lambda asked: client.safety.run_shield("log-only", asked)))
        answer.append(await _chat(client, output_shields=["log-only"]))
        far_beside.append(await _chat(client, input_shields=["elsewhere"]))
        far_before.append(await _chat(client, first=lambda asked: client.safety.run_shield("elsewhere", asked)))
    for name, runs in (("no shield", bare), ("dialog judged beside prefill", beside), ("dialog judged before", before),
                       ("answer judged while streaming", answer), ("guard elsewhere, beside prefill", far_beside),
                       ("guard elsewhere, before", far_before)):  # fmt: skip
        report_median(f"time to first token, {name}", [run[0] * 1e3 for run in runs[1:]], "ms")
        report_median(f"time to last token, {name}", [run[1] * 1e3 for run in runs[1:]], "ms")
    _ratio("time to first token: beside prefill / before it", beside, before, place=0)
    _ratio("time to first token, guard elsewhere: beside / before", far_beside, far_before, place=0)
    for name, runs in (("dialog beside prefill", beside), ("answer", answer)):
        for place, which in enumerate(("first", "last")):
            added = [(run[place] - plain[place]) * 1e3 for run, plain in zip(runs[1:], bare[1:], strict=True)]
            report_median(f"added time to {which} token, {name}", added, "ms")


def _ratio(name: str, ours: Sequence[tuple[float, float]], peer: Sequence[tuple[float, float]], *, place: int) -> None:
    medians = [statistics.median(run[place] for run in runs[1:]) for runs in (ours, peer)]
    report(name, medians[0] / medians[1], "ratio")


async def _chat(
    client: StackClient,
    *,
    first: Callable[[list[v1.Message]], Awaitable[object]] | None = None,
    input_shields: Sequence[str] = (),
    output_shields: Sequence[str] = (),
) -> tuple[float, float]:
    """Seconds to first and last token of an answer to a question that was not asked before."""
    asked = messages(QUESTION.format("several", next(NUMBERS)))
    request = v1.ChatCompletionRequest(
        model_id=MODEL,
        messages=asked,
        input_shields=input_shields,
        output_shields=output_shields,
        sampling_params=v1.SamplingParams(max_tokens=160),
    )
    started = time.perf_counter()
    if first is not None:
        await first(asked)
    first_at = 0.0
    async with client.inference.stream(v1.StreamChatCompletionRequest(request=request)) as events:
        async for event in events:
            if event.WhichOneof("event") == "progress" and not first_at:
                first_at = time.perf_counter() - started
    return first_at, time.perf_counter() - started


async def _streams(client: StackClient) -> None:
    """Guard calls and bytes of a moderated text, and of judging all of it after every chunk."""
    answer = await client.inference.chat(
        MODEL, QUESTION.format("twelve", 0), max_tokens=TOKENS, temperature=0.8, seed=1
    )
    text = answer.completion_message.content.items[0].text
    count = answer.usage.completion_tokens
    question = QUESTION.format("twelve", 0)
    pieces = [text[at : at + 4 * CHUNK_TOKENS] for at in range(0, len(text), 4 * CHUNK_TOKENS)]
    started = time.perf_counter()
    windows = 0
    async with client.safety.stream_moderate(["log-only"], question) as stream:
        for piece in pieces:
            await stream.send(piece)
            # As slowly as a model would write it; otherwise all of it were one window.
            await asyncio.sleep(CHUNK_TOKENS / 120)
        await stream.end()
        async for event in stream:
            windows += event.WhichOneof("event") == "verdict"
            if event.WhichOneof("event") == "completed":
                summary = event.completed
    seconds = time.perf_counter() - started
    scale = TOKENS / count
    report("windows judged per 500 tokens", windows * scale, "calls", note=f"{count} tokens, {seconds:.1f} s, budget 6")
    report("guard bytes per 500 tokens", summary.guard_bytes * scale, "bytes", note="context included")
    resent_bytes = resent_calls = 0
    for at in range(len(pieces)):
        so_far = "".join(pieces[: at + 1])
        response = await client.safety.run_shield(
            "log-only", [*messages(question), *messages([{"role": "assistant", "content": so_far}])]
        )
        resent_calls += 1
        resent_bytes += len(so_far.encode()) if response.verdict.verdict_id else 0
    report("whole text after every chunk: calls per 500 tokens", resent_calls * scale, "calls")
    report("whole text after every chunk: bytes per 500 tokens", resent_bytes * scale, "bytes")
    report("calls: ours / whole text after every chunk", windows / resent_calls, "ratio")
    report("bytes: ours / whole text after every chunk", summary.guard_bytes / resent_bytes, "ratio")


async def _throughput(client: StackClient) -> None:
    """Verdicts per second, one at a time and sixteen at a time; the texts are all different."""
    rates: dict[int, list[float]] = {1: [], 16: []}
    for _ in range(3):
        for at_once, found in rates.items():
            started = time.perf_counter()
            await asyncio.gather(*(_some(client, VERDICTS // at_once) for _ in range(at_once)))
            found.append(VERDICTS / (time.perf_counter() - started))
    for at_once, found in rates.items():
        report_median(f"verdicts of {SHIELD}, {at_once} at a time", found, "1/s")
    report(
        "verdicts/s: 16 at a time / one at a time", statistics.median(rates[16]) / statistics.median(rates[1]), "ratio"
    )


async def _some(client: StackClient, count: int) -> None:
    for _ in range(count):
        await client.safety.run_shield(SHIELD, QUESTION.format("three", next(NUMBERS)))


if __name__ == "__main__":
    main()
