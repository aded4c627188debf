"""Starting: each light service, and the whole stack to its first token, for the first time and again."""

import asyncio
import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.measure import STACK, report_median, served
from stack_client import StackClient, addresses

ROUNDS = 5
NO_MODELS: dict[str, object] = {"inference": {"models": []}}
NO_INFERENCE: dict[str, object] = {"addresses": {"inference": "localhost:1"}}
LIGHT = {"agents": NO_INFERENCE, "safety": NO_INFERENCE, "memory": NO_INFERENCE, "inference": NO_MODELS}


def main() -> None:
    """Measure both."""
    for name, settings in LIGHT.items():
        samples = []
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as folder, served(name, Path(folder), settings) as service:
                samples.append(service.ready_cpu)
        what = "inference service without a model" if name == "inference" else f"{name} service"
        report_median(f"start of the {what}, CPU to ready", samples, "s", note="budget 1.5")
    first, warm = [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            first.append(_to_first_token(folder))
            warm += [_to_first_token(folder) for _ in range(2)]
    report_median("`stack up` to first token, first time (converts), wall", first, "s")
    report_median("`stack up` to first token, warm, wall", warm, "s", note="budget 5")


def _to_first_token(home: str) -> float:
    environment = os.environ | {"STACK_HOME": home}
    started = time.perf_counter()
    subprocess.run([*STACK, "up", "--detach"], check=True, env=environment, capture_output=True)
    try:
        asyncio.run(_first_token(home))
        return time.perf_counter() - started
    finally:
        subprocess.run([*STACK, "down"], check=True, env=environment, capture_output=True)


async def _first_token(home: str) -> None:
    os.environ["STACK_HOME"] = home
    async with StackClient(addresses.resolve()) as client:
        stream = client.inference.stream_chat("smollm2-135m", "Say hello.", max_tokens=4)
        async with stream:
            async for event in stream:
                if event.WhichOneof("event") == "progress":
                    return


if __name__ == "__main__":
    main()
