"""Landlock (landlock(7)): a process gives up all files but those beneath some folders; needs no privilege.

It imports nothing of ours, for it is also read alone inside sandboxes.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Iterable

_CREATE, _ADD, _RESTRICT = 444, 445, 446
"""System calls, the same numbers on all machines."""
_VERSION, _BENEATH, _NO_NEW_PRIVS = 1, 1, 38
_EXECUTE, _WRITE, _READ, _READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Rights over files that each version knows, from linux/landlock.h."""
_OF_FILES = _EXECUTE | _WRITE | _READ | 1 << 14 | 1 << 15
_CONNECT_AND_BIND = 3
"""TCP, from version 4 on."""
_SCOPES = 3
"""Abstract sockets and signals, from version 6 on."""


def restrict(*, readable: Iterable[str], writable: Iterable[str]) -> int:
    """Leave this thread and its future children only some files; the version of Landlock, 0 where there is none.

    Call it before other threads start. TCP, abstract sockets and signals to outside go where the version can.

    Args:
        readable: Files and folders that may be read and run; those that do not exist are left out.
        writable: Folders beneath which everything may be done.

    Raises:
        OSError: If the kernel has Landlock and refuses.
    """
    if sys.platform != "linux":
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    version = int(libc.syscall(_CREATE, None, 0, _VERSION))
    if version < 1:
        return 0
    rights = _RIGHTS[min(version, 5)]
    head = struct.pack("=QQQ", rights, _CONNECT_AND_BIND, _SCOPES)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _checked(libc.syscall(_CREATE, head, size, 0))
    try:
        for path in readable:
            _add(libc, rules, path, (_EXECUTE | _READ | _READ_FOLDER) & rights)
        for path in writable:
            _add(libc, rules, path, rights)
        _checked(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked(libc.syscall(_RESTRICT, rules, 0))
    finally:
        os.close(rules)
    return version


def _add(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        allowed = rights if os.path.isdir(path) else rights & _OF_FILES  # noqa: PTH112 (few imports)
        _checked(libc.syscall(_ADD, rules, _BENEATH, struct.pack("=Qi", allowed, place), 0))
    finally:
        os.close(place)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock: {os.strerror(number)}")
    return result
