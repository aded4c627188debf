"""The process of one execution: `child.py PARENT PATH MODULE MEMORY`; it reads its job, a line of JSON, when one comes.

Everything that can be done before is done before. Then it gives up its rights and runs the module, and its exit status
says how that ended.
"""

import os
import sys

sys.path[:] = sys.argv[2].split(os.pathsep)

import json  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402

from services.runtime import landlock, sandbox  # noqa: E402
from services.tools.interpreter import folder  # noqa: E402
from services.tools.interpreter.wasm import engine  # noqa: E402
from services.tools.interpreter.wasm.engine import DISK, ENDED, FUEL, TRAPPED, UNSAFE  # noqa: E402

_WATCH_SECONDS = 0.02
_RESERVED = 24 << 30
"""Address space that wasmtime reserves around a memory without using it."""
_GUEST = os.path.join(os.path.dirname(os.path.dirname(__file__)), "guest")  # noqa: PTH118, PTH120 (few imports)


def main(module_file: str, memory_bytes: int) -> int:
    """Load the module, wait for a job, run it."""
    import wasmtime  # noqa: PLC0415 (30 ms; not for those who want the statuses)

    made = engine.make()
    module = wasmtime.Module.deserialize_file(made, module_file)
    linker = wasmtime.Linker(made)
    linker.define_wasi()
    program = "".join(_text(name) for name in ("driver.py", "wasi.py"))
    line = sys.stdin.buffer.readline()
    if not line:
        return ENDED  # never needed
    job = json.loads(line)
    store = wasmtime.Store(made)
    store.set_fuel(job["fuel"])
    store.set_limits(memory_size=memory_bytes, instances=1, memories=1)
    wasi = wasmtime.WasiConfig()
    wasi.argv = ["python", "-I", "-S", "-B", "-c", program]
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    wasi.preopen_dir(job["work"], "/mnt/data")
    wasi.preopen_dir(job["state"], "/mnt/state")
    wasi.preopen_dir(job["inbox"], "/mnt/inbox", fs_mutable=False)
    wasi.preopen_dir(job["cloudpickle"], "/cloudpickle", fs_mutable=False)
    if not _give_up_rights(job, memory_bytes):
        return UNSAFE
    store.set_wasi(wasi)
    threading.Thread(target=_watch, args=(job,), daemon=True).start()
    end = _run(wasmtime, store, linker, module)
    return DISK if _too_much(job) else end


def _give_up_rights(job: dict[str, str | int], memory_bytes: int) -> bool:
    """Everything beyond computing and the call's folders; a second wall behind the module's own."""
    landlock.restrict(
        readable=[str(job["inbox"]), str(job["cloudpickle"])], writable=[str(job["work"]), str(job["state"])]
    )
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # too long a file is an error that the code sees
    sandbox.limit(
        memory_bytes=memory_bytes + (192 << 20),
        reserved_bytes=_RESERVED,
        cpu_seconds=int(job["cpu_seconds"]),
        file_bytes=int(job["disk_bytes"]),
        processes=None,
        files=64,
    )
    return sandbox.refuse_calls(processes=False, sockets=False) or sys.platform != "linux"


def _run(wasmtime, store, linker, module) -> int:  # type: ignore[no-untyped-def]  # noqa: ANN001 (imported late)
    instance = linker.instantiate(store, module)
    try:
        instance.exports(store)["_start"](store)
    except wasmtime.ExitTrap:
        return ENDED
    except wasmtime.Trap as trap:
        return FUEL if trap.trap_code == wasmtime.TrapCode.OUT_OF_FUEL else TRAPPED
    except wasmtime.WasmtimeError:
        return TRAPPED
    return ENDED


def _watch(job: dict[str, str | int]) -> None:
    """End this process when the folders hold too much."""
    while True:
        began = time.thread_time()
        if _too_much(job):
            os._exit(DISK)
        time.sleep(max(_WATCH_SECONDS, 10 * (time.thread_time() - began)))


def _too_much(job: dict[str, str | int]) -> bool:
    most = int(job["disk_entries"])
    used = folder.usage(str(job["work"]), str(job["state"]), most=most)
    return used.bytes > int(job["disk_bytes"]) or used.entries > most


def _text(name: str) -> str:
    with open(os.path.join(_GUEST, name), encoding="utf-8") as file:  # noqa: PTH118, PTH123 (few imports)
        return file.read() + "\n"


if __name__ == "__main__":
    from services.runtime.parents import die_with_parent

    die_with_parent(int(sys.argv[1]), signal_number=signal.SIGKILL)
    status = main(sys.argv[3], int(sys.argv[4]))
    os._exit(status)  # nothing is left to be cleaned up
