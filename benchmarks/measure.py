"""What every benchmark needs: processes with their CPU time, medians, and one way to print."""

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

STACK = (sys.executable, "-m", "stack_client.cli")


def cpu_seconds(pid: int, *, children: bool = True) -> float:
    """User and system time of a process, with that of its living and reaped children."""
    process = psutil.Process(pid)
    family = [process, *(process.children(recursive=True) if children else [])]
    times = [member.cpu_times() for member in family]
    return sum(t.user + t.system for t in times) + times[0].children_user + times[0].children_system


def report(name: str, value: float, unit: str, *, note: str = "", samples: Sequence[float] = ()) -> None:
    """Print one figure for people and as a JSON line."""
    spread = f"  ({min(samples):.4g} to {max(samples):.4g}, n={len(samples)})" if samples else ""
    print(f"{name:<58} {value:10.4g} {unit}{spread}{'  ' + note if note else ''}")
    print(json.dumps({"benchmark": name, "value": value, "unit": unit, "samples": list(samples), "note": note}))


def report_median(name: str, samples: Sequence[float], unit: str, *, note: str = "") -> None:
    """Print the median of several runs with its spread."""
    report(name, statistics.median(samples), unit, note=note, samples=samples)


@dataclass
class Served:
    """A service in a process of its own."""

    pid: int
    address: str
    ready_cpu: float
    """CPU seconds from the start of the process until it was healthy."""


@contextlib.contextmanager
def served(name: str, home: Path, settings: dict[str, object]) -> Iterator[Served]:
    """Run `stack serve NAME` and wait until it is healthy."""
    home.mkdir(parents=True, exist_ok=True)
    socket = home / "run" / f"{name}.sock"
    runtime = {"tcp": False, "socket_dir": str(socket.parent), "log_level": "WARNING", "drain_grace_seconds": 0.5}
    config = home / "stack.yaml"
    config.write_text(yaml.safe_dump({"runtime": runtime, **settings}))
    with subprocess.Popen([*STACK, "serve", name, "--config", str(config), "--home", str(home)]) as process:
        try:
            cpu = _wait_healthy(process, f"unix:{socket}")
            yield Served(process.pid, f"unix:{socket}", cpu)
        finally:
            process.terminate()


def _wait_healthy(process: "subprocess.Popen[bytes]", address: str) -> float:
    for _ in range(600):
        # Read before the check, so that waiting for the answer is not counted.
        cpu = cpu_seconds(process.pid)
        if process.poll() is not None:
            raise RuntimeError(f"the service ended with {process.returncode} before it was ready")
        check = subprocess.run([*STACK, "health", address, "--timeout", "1"], capture_output=True, check=False)
        if check.returncode == 0:
            return cpu
        time.sleep(0.05)
    raise RuntimeError(f"{address} did not become healthy")
