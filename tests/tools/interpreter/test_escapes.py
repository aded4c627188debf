"""What hostile code tries, in each tier: it fails, the service goes on, and the next call works."""

import asyncio
import contextlib
import socket
from pathlib import Path

import psutil
import pytest

from services.tools.interpreter import folder, result
from tests.tools.interpreter.conftest import Open, names_of, shown, until

SECRET = "the-host-secret-9d1f"
BOUNDS = {"seconds": 6.0, "disk_bytes": 8 << 20, "disk_entries": 200, "flood_bytes": 4 << 20}

ATTEMPTS = {
    "read a file of the host": "print(open({secret!r}).read())",
    "list the host's folders": "import os\nprint(os.listdir({folder!r}))",
    "walk up": "print(open('../' * 30 + {secret!r}.lstrip('/')).read())",
    "read the password file": "assert 'root:' in open('/etc/shadow').read()\nprint({mark})",
    "environment": "import os\nprint(dict(os.environ))",
    "environments of processes": (
        "import glob\nfor name in [*glob.glob('/proc/*/environ'), '/proc/self/environ', '/proc/1/environ']:\n"
        "    try: print(open(name, 'rb').read())\n    except OSError: pass"
    ),
    "memory of processes": "open('/proc/1/mem', 'rb+').seek(4096)\nprint({mark})",
    "start of the kernel's memory": "print(open('/proc/kcore', 'rb').read(8), {mark})",
    "write into the system": (
        "import os\nfor name in ('/usr/x', '/etc/x', '/x', '/sandbox/driver.py', '/mnt/inbox/code', '/dev/x',\n"
        "             '/usr/local/lib/x', '/proc/sys/kernel/core_pattern'):\n"
        "    try: open(name, 'w').write('x'); print({mark}, name)\n    except OSError: pass"
    ),
    "become root": "import os\nos.setuid(0)\nprint({mark})",
    "native code": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        # ptrace, mount, unshare, bpf, keyctl, io_uring_setup, init_module, perf_event_open, userfaultfd, open_by_handle
        "for number in (101, 165, 272, 321, 250, 425, 175, 298, 323, 304):\n"
        "    if libc.syscall(number, 0, 0, 0, 0, 0) != -1: print({mark}, number)\n"
        "if libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0) != -1: print({mark}, 'clone')"
    ),
    "sockets of packets": "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)\nprint({mark})",
    "sockets of the kernel": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\nprint({mark})",
    "name lookup": (
        "import socket\nsocket.getaddrinfo('localhost', 80)\nsocket.create_connection(('localhost', 22))\nprint({mark})"
    ),
    "kill everybody": "import os\nfor who in (os.getppid(), 1, -1):\n    os.kill(who, 9)",
    "kill its group": "import os, signal\nos.killpg(0, signal.SIGKILL)",
    "hang its parent": "import os\nos.kill(os.getppid(), 19)",
    "delete its folders": (
        "import shutil\nfor name in ('/mnt/data', '/mnt/state', '/mnt/inbox', '/'):\n"
        "    shutil.rmtree(name, ignore_errors=True)"
    ),
    "replace what the host reads": (
        "import os\nos.mkdir('/mnt/state/result')\nos.mkdir('/mnt/state/restored')\nos.mkdir('/mnt/state/variables')"
    ),
    "lie in the result": "import os\nopen('/mnt/state/result', 'w').write('error=' + '[' * 100000)\nos._exit(0)",
    "a result without end": "import os\nopen('/mnt/state/result', 'w').write('error=\"' + 'x' * 3000000)\nos._exit(0)",
    "answer for the sandbox": (
        "import os\nfor number in range(3, 64):\n"
        "    try: os.write(number, b'done 2\\ndone 3\\n')\n    except OSError: pass"
    ),
    "an answer without end": (
        "import os\nfor number in range(3, 64):\n"
        "    try:\n        while True: os.write(number, b'x' * 65536)\n    except OSError: pass"
    ),
    "close everything": "import os\nos.closerange(0, 256)",
    "an unprintable error": "class E(Exception):\n    def __str__(self): raise self\nraise E",
    "an endless error": "raise ValueError('x' * 10_000_000)",
    "a stack without end": "import json\nx = []\nfor _ in range(100_000): x = [x]\njson.dumps(x)\nrepr(x)",
    "a pipe for a file": "import os\nos.mkfifo('pipe')",
    "threads": "import threading\nfor _ in range(10_000): threading.Thread(target=input).start()",
}
STOPPED = {
    "endless loop": ("while True: pass", ("time", "fuel")),
    "endless sleep": ("import time\ntime.sleep(1e6)", ("time",)),
    "output without end": ("while True: print('x' * 10_000)", ("output",)),
    "errors without end": ("import sys\nwhile True: sys.stderr.write('x' * 10_000)", ("output",)),
    "many files": ("for k in range(10**6): open(str(k), 'w').close()", ("disk",)),
    "deep folders": ("import os\nfor k in range(10**6): os.mkdir('d'); os.chdir('d')", ("disk",)),
    "many files of some size": ("for k in range(50): open(str(k), 'wb').write(b'x' * 2**20)", ("disk",)),
    "a large state": ("for k in range(50): open(f'/mnt/state/{k}', 'wb').write(b'x' * 2**20)", ("disk",)),
}


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file and a variable of the host."""
    path = tmp_path / "secret.txt"
    path.write_text(SECRET)
    path.chmod(0o644)
    monkeypatch.setenv("HOST_SECRET", SECRET)
    return path


@pytest.mark.parametrize("name", ATTEMPTS)
async def test_an_attempt_fails_and_the_next_call_works(opened: Open, tier: str, secret: Path, name: str) -> None:
    # The mark is put together inside, so that a traceback that quotes the code does not contain it.
    code = ATTEMPTS[name].format(secret=str(secret), folder=str(secret.parent), mark="'ESC' + 'APED'")
    async with opened(tier, **BOUNDS) as interpreter:
        await interpreter.text("1", session="s")
        answer = await interpreter.run(code, session="s")
        said = shown(answer) + answer.error_message
        assert SECRET not in said, said[:2000]
        assert "ESCAPED" not in said, said[:2000]
        assert "secret.txt" not in said.replace(str(secret), ""), said[:2000]
        assert answer.error_code != result.UNAVAILABLE
        assert "[stdout]\n42\n[/stdout]" in await interpreter.text("6 * 7", session="s")
        assert await interpreter.text("6 * 7") == "completed\n[stdout]\n42\n[/stdout]"
    assert secret.read_text() == SECRET


@pytest.mark.parametrize("name", STOPPED)
async def test_what_has_no_end_is_ended(opened: Open, tier: str, name: str) -> None:
    code, ends = STOPPED[name]
    async with opened(tier, **BOUNDS) as interpreter:
        await interpreter.text("n = 1", session="s")
        answer = await interpreter.run(code, session="s")
        assert answer.error_code in {result.CODES[end] for end in ends}, shown(answer)[:500]  # type: ignore[index]
        assert "stopped" in answer.error_message
        assert await interpreter.text("n", session="s") == "completed\n[stdout]\n1\n[/stdout]"
        where = str(interpreter.folder / "sessions")
        assert folder.usage(where, most=10_000).bytes < 12 << 20


async def test_work_without_end_runs_out_of_fuel(opened: Open) -> None:
    async with opened("wasm", wasm={"fuel": 2_000_000_000}) as interpreter:
        answer = await interpreter.run("while True: pass")
        assert answer.error_code == result.CODES["fuel"]
        assert "computed too much" in answer.error_message


async def test_memory_without_end_is_an_error_that_the_code_sees_or_its_end(opened: Open, tier: str) -> None:
    small = {"memory_bytes": 128 << 20}
    async with opened(tier, wasm=small, native=small) as interpreter:
        for code in ("x = 'x' * (2 * 10**9)", "x = []\nwhile True: x.append(bytes(1000))", "x = bytearray(10**9)"):
            answer = await interpreter.run(code)
            assert "MemoryError" in shown(answer) or answer.error_code == result.CODES["memory"], shown(answer)
        assert "42" in await interpreter.text("42")


async def test_a_file_longer_than_allowed_is_an_error_that_the_code_sees(opened: Open, tier: str) -> None:
    async with opened(tier, **BOUNDS) as interpreter:
        code = "f = open('big', 'wb')\nfor _ in range(100): f.write(b'x' * 2**20)"
        answer = await interpreter.run(code)
        assert answer.error_code in {1, result.CODES["disk"]}
        assert "OSError" in shown(answer) or "stopped" in answer.error_message


async def test_sockets_reach_nobody(opened: Open, tier: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind("\0interpreter-test")
        local.listen()
        server.settimeout(0)
        local.settimeout(0)
        code = (
            "import socket\n"
            f"for family, address in ((2, ('127.0.0.1', {server.getsockname()[1]})), (1, '\\0interpreter-test')):\n"
            "    try:\n        one = socket.socket(family)\n        one.settimeout(2)\n        one.connect(address)\n"
            "        print('reached', address)\n    except (OSError, AttributeError) as error: print(type(error))"
        )
        async with opened(tier) as interpreter:
            assert "reached" not in await interpreter.text(code)
        for one in (server, local):
            with pytest.raises(BlockingIOError):
                one.accept()


def living() -> list[psutil.Process]:
    """The processes below this one; those that were killed and wait for a stopped parent are no longer any."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [one] if one.status() != psutil.STATUS_ZOMBIE else []
    return found


async def test_a_fork_bomb_is_bounded_and_gone(opened: Open, native: str) -> None:
    async with opened(native, native={"processes": 30}, seconds=5.0) as interpreter:
        await interpreter.text("1", session="s")
        before = len(living())
        code = "import os\nfor _ in range(200):\n    try: os.fork()\n    except OSError: print('bounded'); break"
        await interpreter.run(code, session="s")
        await until(lambda: len(living()) <= before)
        assert "42" in await interpreter.text("42", session="s")


async def test_nothing_runs_between_calls(opened: Open, native: str) -> None:
    code = (
        "import subprocess, sys, threading, time\n"
        "subprocess.Popen([sys.executable, '-c', 'while True: pass'], start_new_session=True)\n"
        "def work():\n    global n\n    while True: n += 1\n"
        "n = 0\nthreading.Thread(target=work, daemon=True).start()"
    )
    others = living()  # of the fixtures of other tests
    async with opened(native) as interpreter:
        assert "completed" in await interpreter.text(code, session="s")
        inside = [one for one in living() if one not in others and one.name().startswith("python")]
        assert [one.status() for one in inside] == [psutil.STATUS_STOPPED]
        assert "completed" in await interpreter.text("1", session="s")


async def test_links_never_lead_the_host_out_of_the_folder(opened: Open, native: str, secret: Path) -> None:
    code = (
        f"import os\nos.symlink({str(secret)!r}, 'a.txt')\nos.symlink({str(secret.parent)!r}, 'b')\n"
        "os.symlink('/etc', 'c')\nos.mkdir('d')\nopen('d/real.txt', 'w').write('real')"
    )
    async with opened(native) as interpreter:
        answer = await interpreter.run(code, session="s")
        assert names_of(answer) == ["d/real.txt"]
        assert SECRET not in str(answer)
    # What the host does by name goes through no link either.
    room = next((interpreter.folder / "sessions").iterdir())
    assert folder.read(str(room / "work"), "a.txt", most=1000) is None
    assert folder.read(str(room / "work"), "b/secret.txt", most=1000) is None
    folder.remove(str(room))
    assert secret.exists()


async def test_links_out_of_the_folder_cannot_be_made_in_webassembly(opened: Open, secret: Path) -> None:
    async with opened("wasm") as interpreter:
        answer = await interpreter.run(f"import os\nos.symlink({str(secret)!r}, 'a.txt')\nprint(open('a.txt').read())")
        assert "PermissionError" in shown(answer)


async def test_kept_variables_are_unpickled_inside_only(opened: Open, tier: str, tmp_path: Path) -> None:
    marker = tmp_path / "escaped"
    code = (
        "import os\nclass Trap:\n    def __reduce__(self):\n"
        f"        return (open, ({str(marker)!r}, 'w'))\ntrap = Trap()\nn = 1"
    )
    async with opened(tier) as interpreter:
        assert await interpreter.text(code, session="s") == "completed"
    async with opened(tier) as interpreter:
        answer = await interpreter.text("n", session="s")
        assert "could not be restored" in answer
    assert not marker.exists()


async def test_variables_that_never_load_are_dropped(opened: Open, tier: str) -> None:
    code = "class Trap:\n    def __reduce__(self): return (exec, ('while True: pass',))\ntrap = Trap()"
    async with opened(tier) as interpreter:
        await interpreter.text(code, session="s")
    async with opened(tier, seconds=2.0) as interpreter:
        assert "were dropped" in await interpreter.text("1", session="s")
        assert "42" in await interpreter.text("42", session="s")


async def test_folders_closed_to_their_owner_are_deleted_too(opened: Open, native: str) -> None:
    async with opened(native) as interpreter:
        await interpreter.text("import os\nos.makedirs('a/b')\nos.chmod('a/b', 0)\nos.chmod('a', 0)")
        assert interpreter.folders == []


async def test_a_start_that_is_cancelled_at_any_step_leaves_nothing(opened: Open, native: str) -> None:
    async with opened(native) as interpreter:
        await interpreter.text("1")
        for steps in range(0, 600, 15):
            async with asyncio.TaskGroup() as group:
                task = group.create_task(interpreter.run("while True: pass"))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
            assert interpreter.folders == []
            assert inside(interpreter.folder) == []


def inside(folder: Path) -> list[str]:
    """Processes anywhere on this machine that were started for a folder."""
    lines = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(one.cmdline()))
    return [line for line in lines if f"{folder}/" in line]


async def test_a_service_that_is_cancelled_in_many_calls_leaves_nothing(opened: Open, tier: str) -> None:
    async with opened(tier, wasm={"warm": 0}) as interpreter:
        await interpreter.text("1")
        before = set(psutil.Process().children(recursive=True))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(interpreter.run("while True: pass")) for _ in range(6)]
            await until(lambda: bool(interpreter.folders))
            for task in tasks:
                task.cancel()
        assert set(psutil.Process().children(recursive=True)) <= before
        assert inside(interpreter.folder) == []
        assert interpreter.folders == []
