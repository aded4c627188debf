"""Rights that a process gave up stay given up."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

PROBE = """
import json, os, socket, subprocess, sys, threading
from services.runtime import landlock, sandbox
inside, outside = sys.argv[1:]
version = landlock.restrict(readable=["/usr", "/lib", "/lib64", *sys.path], writable=[inside])
assert sandbox.refuse_calls(processes=False, sockets=False)
def tried(work):
    try:
        work()
    except OSError as error:
        return type(error).__name__
    return "done"
print(json.dumps({
    "landlock": version,
    "write inside": tried(lambda: open(inside + "/file", "w").close()),
    "thread": tried(threading.Thread(target=int).start),
    "write outside": tried(lambda: open(outside + "/file", "w")),
    "read outside": tried(lambda: os.listdir(outside)),
    "socket": tried(socket.socket),
    "fork": tried(lambda: os._exit(0) if os.fork() == 0 else None),
    "run": tried(lambda: subprocess.run(["/usr/bin/true"])),
    "kill": tried(lambda: os.kill(os.getppid(), 0)),
}), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
async def test_a_restricted_process_has_its_folder_and_threads_and_nothing_else(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROBE, str(inside), str(outside),
        stdout=asyncio.subprocess.PIPE, env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    said, _ = await process.communicate()
    found = json.loads(said)
    if found.pop("landlock") == 0:
        found.pop("write outside")
        found.pop("read outside")
    assert found.pop("write inside") == "done"
    assert found.pop("thread") == "done"
    assert "done" not in found.values(), found
    assert found
