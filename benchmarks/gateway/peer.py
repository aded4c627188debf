"""The peer: the server of Llama Stack itself, before the same scripted backend.

OGX, its successor, needs Python 3.12; 0.2.12 is the newest of its line that runs on 3.11. It gets its model from an
OpenAI-compatible endpoint, which is our gateway; only the peer's own process is measured.
"""

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.measure import cpu_seconds

PACKAGES = (
    "llama-stack==0.2.12", "openai==1.99.9", "fastapi", "uvicorn", "aiosqlite", "sqlalchemy[asyncio]", "requests",
    "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http",
)  # fmt: skip
HOME = Path.home() / ".cache" / "llama-stack-mesh" / "peers" / "llama-stack-0.2.12"
START_SECONDS = 90.0


@dataclass
class Peer:
    """The running peer."""

    url: str
    pid: int
    ready_cpu: float


def python() -> Path | None:
    """Python of the peer's environment, made once; None where its packages cannot be had."""
    found = HOME / "bin" / "python"
    if found.exists():
        return found
    commands = ([sys.executable, "-m", "venv", str(HOME)], [str(HOME / "bin" / "pip"), "install", "-q", *PACKAGES])
    if any(subprocess.run(command, check=False).returncode for command in commands):
        return None
    return found


@contextlib.contextmanager
def running(program: Path, folder: Path, *, backend: str, port: int) -> Iterator[Peer]:
    """Serve the model `scripted` of an OpenAI-compatible endpoint.

    Args:
        program: Python of its environment.
        folder: For its files.
        backend: Base URL of the endpoint.
        port: To listen on.
    """
    settings = {"url": f"{backend}/v1", "max_tokens": 4096, "api_token": "none", "tls_verify": False}
    provider = {"provider_id": "vllm", "provider_type": "remote::vllm", "config": settings}
    config = {
        "version": "2",
        "image_name": "peer",
        "apis": ["inference"],
        "providers": {"inference": [provider]},
        "models": [
            {"model_id": "scripted", "provider_id": "vllm", "provider_model_id": "scripted", "model_type": "llm"}
        ],
        "metadata_store": {"type": "sqlite", "db_path": str(folder / "peer.db")},
        "server": {"port": port},
    }
    file = folder / "peer.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [str(program), "-m", "llama_stack.distribution.server.server", "--config", str(file)]
    environment = {**os.environ, "SQLITE_STORE_DIR": str(folder), "PYTHONPATH": "", "LLAMA_STACK_LOGGING": "all=error"}
    with (folder / "peer.log").open("wb") as log:
        process = subprocess.Popen([*command, "--port", str(port)], env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(process, url)
        yield Peer(url, process.pid, cpu_seconds(process.pid))
    finally:
        process.terminate()
        process.wait(20)


def _wait(process: "subprocess.Popen[bytes]", url: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(f"{url}/v1/health"):
            return
        time.sleep(0.1)
    raise RuntimeError("the peer did not start; its log is peer.log")
