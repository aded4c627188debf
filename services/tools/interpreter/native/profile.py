"""What a kernel may see and do, as arguments of bubblewrap (bwrap(1))."""

import json
import os
import shutil
import sys
from pathlib import Path

from services.runtime import landlock, sandbox
from services.tools.interpreter.config import InterpreterConfig, NativeConfig
from services.tools.interpreter.job import Room, Unavailable

_GUEST = Path(__file__).parent.parent / "guest"
_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
_READABLE = ("/etc/ld.so.cache", "/etc/fonts", "/etc/localtime", "/etc/alternatives", "/etc/mime.types")
_SHARED_MEMORY = 64 << 20
"""Bytes of /tmp and of /dev/shm, which lie in memory."""
_ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108 (the sandbox's own)
    "LANG": "C.UTF-8",
    "MPLBACKEND": "module://figures",
    "MPLCONFIGDIR": "/tmp/matplotlib",  # noqa: S108
    "OMP_NUM_THREADS": "2",
    "OPENBLAS_NUM_THREADS": "2",
    "PATH": "/usr/bin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def command(config: InterpreterConfig, room: Room, *, answers: int) -> list[str]:
    """The command that starts a kernel in a room; it inherits the descriptor `answers` and nothing else.

    Raises:
        Unavailable: If bubblewrap or the interpreter is not there; says what to install.
    """
    native = config.native
    launcher = shutil.which(native.bubblewrap)
    if launcher is None:
        raise Unavailable(f"no program {native.bubblewrap!r}: install bubblewrap (apt-get install bubblewrap)")
    python = _python(native)
    prefixes = _prefixes(python)
    settings = {
        "answers": answers,
        "uid": native.uid,
        "memory_bytes": native.memory_bytes,
        "disk_bytes": config.disk_bytes,
        "processes": native.processes,
        "readable": ["/usr", *_SYSTEM, *_READABLE, "/proc", "/sandbox", "/mnt/inbox", *prefixes,
                     *(str(path) for path in native.readable)],
    }  # fmt: skip
    return [
        launcher, *_namespaces(), *_files(native, prefixes),
        "--bind", str(room.work), "/mnt/data", "--bind", str(room.state), "/mnt/state",
        "--ro-bind", str(room.inbox), "/mnt/inbox", "--remount-ro", "/dev", "--remount-ro", "/",
        "--chdir", "/", *(part for pair in _ENVIRONMENT.items() for part in ("--setenv", *pair)),
        "--", str(python), "-I", "-B", "/sandbox/native.py", json.dumps(settings),
    ]  # fmt: skip


def _namespaces() -> list[str]:
    """Root keeps what the first program needs to become somebody else; others become so in a namespace of users."""
    user = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    if os.geteuid() != 0:
        user = ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    return [
        *user, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
        "--hostname", "sandbox", "--die-with-parent", "--new-session",
    ]  # fmt: skip


def _files(native: NativeConfig, prefixes: list[str]) -> list[str]:
    places = [*_READABLE, *prefixes, *map(str, native.readable), "/sandbox/x", "/mnt/x", "/usr/x"]
    above = sorted({str(folder) for place in places for folder in Path(place).parents} - {"/", "."})
    size = str(_SHARED_MEMORY)
    arguments = ["--proc", "/proc", "--dev", "/dev", "--size", size, "--perms", "1777", "--tmpfs", "/dev/shm"]  # noqa: S108
    # Before what is bound: an interpreter's environment may lie under /tmp.
    arguments += ["--size", size, "--perms", "1777", "--tmpfs", "/tmp"]  # noqa: S108
    # Folders that bubblewrap makes by itself are closed to others than its own user.
    arguments += [part for folder in above for part in ("--perms", "0755", "--dir", folder)]
    arguments += ["--ro-bind", "/usr", "/usr"]
    for path in _SYSTEM:
        if Path(path).is_symlink():
            arguments += ["--symlink", str(Path(path).readlink()), path]
        else:
            arguments += ["--ro-bind-try", path, path]
    for path in (*_READABLE, *prefixes, *(str(path) for path in native.readable)):
        arguments += ["--ro-bind-try", path, path]
    programs = [_GUEST / name for name in ("driver.py", "native.py", "figures.py")]
    for program in (*programs, Path(str(sandbox.__file__)), Path(str(landlock.__file__))):
        arguments += ["--ro-bind", str(program), f"/sandbox/{program.name}"]
    return arguments


def _python(native: NativeConfig) -> Path:
    python = native.python or Path(sys.executable)
    if not python.is_file():
        raise Unavailable(f"native.python: there is no {python}: give the path of a Python interpreter")
    return python


def _prefixes(python: Path) -> list[str]:
    """The folders that an interpreter consists of: its environment, and the installation behind that."""
    folders = []
    here = python
    while True:
        folders.append(here.parent.parent)
        if not here.is_symlink():
            break
        here = here.parent / here.readlink()
    found = dict.fromkeys(str(Path(os.path.normpath(folder))) for folder in folders)
    return [folder for folder in found if folder not in {"/", "/usr"}]
