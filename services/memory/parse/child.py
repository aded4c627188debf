"""The process that parses: `python -m services.memory.parse.child PARENT MEMORY_BYTES CPU_SECONDS PARSER`.

It reads documents from its input and writes their texts to its output, one after the other, and gives up all other
rights before the first. Everything that reading needs is imported before: afterwards no file can be opened.
"""

import encodings
import gc
import importlib
import os
import pkgutil
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from services.memory.parse.extract import Extract, RefusedError, Task, cause, read_frame, write_frame
from services.runtime import sandbox

_NOT_HERE = {"mbcs", "oem", "cp65001"}
"""Encodings of Windows only."""


def main(arguments: list[str]) -> int:
    """Serve until the parent closes the pipe."""
    parent, memory_bytes, cpu_seconds = (int(argument) for argument in arguments[:3])
    _die_with(parent)
    parse = _docling() if arguments[3] == "docling" else _builtin()
    held: list[str] = []
    if arguments[3] == "builtin":
        held = sandbox.limit(memory_bytes=memory_bytes, cpu_seconds=cpu_seconds)
        held += ["calls"] * sandbox.filter_calls()
    else:
        # docling runs models: it needs files and threads.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        held = ["cpu"]
    gc.freeze()  # what was imported is no garbage: looking through it would cost more than most documents
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    write_frame(sink, {"held": held})
    while (frame := read_frame(source)) is not None:
        head, body = _answer(parse, *frame)
        del frame
        write_frame(sink, head, body)
        del body
        gc.collect()
    return 0


def _answer(parse: Callable[[Task, bytes], Extract], head: bytes, data: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        extract = parse(Task.unpack(head), data)
        values = asdict(extract)
        body = values.pop("text").encode()
        answer: dict[str, Any] = {"extract": values}
    except RefusedError as error:
        answer, body = {"refused": error.message[:1000], "reason": error.reason}, b""
    except MemoryError:
        answer, body = {"refused": "", "reason": "memory"}, b""
    except RecursionError:
        answer, body = {"refused": "it is nested too deep: save it in a simpler form", "reason": "invalid"}, b""
    except Exception as error:  # noqa: BLE001 (readers of damaged files raise anything)
        what = f"it is damaged: its reader gave up ({cause(error)})"[:500]
        answer, body = {"refused": f"{what}; open and save it again", "reason": "invalid"}, b""
    return {**answer, "cpu": sum(resource.getrusage(resource.RUSAGE_SELF)[:2])}, body


def _builtin() -> Callable[[Task, bytes], Extract]:
    """The parser with everything in memory that it imports late."""
    from services.memory.parse import builtin, warm  # noqa: PLC0415 (docling needs neither)

    for module in pkgutil.iter_modules(encodings.__path__):
        if module.name not in _NOT_HERE:
            importlib.import_module(f"encodings.{module.name}")
    for name, data in warm.samples():
        builtin.parse(Task(name=name), data)
    return builtin.parse


def _docling() -> Callable[[Task, bytes], Extract]:
    from services.memory.parse import docling  # noqa: PLC0415 (a large optional package)

    return docling.parse


def _die_with(parent: int) -> None:
    """See `services.runtime.parents`, which imports more than a child should."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 (only here)

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
