"""Taking a process's rights away: limits of the kernel, and a filter of its calls.

What holds where: resource limits on every POSIX system; on Linux for x86-64 and arm64 also a filter (seccomp, see
seccomp(2)) under which every call but the few that computing needs fails with EPERM: no files, no network, no other
processes. Where there is no filter, files cannot be opened either, since no descriptor is left (RLIMIT_NOFILE), which
also keeps sockets from being made; new processes are held by RLIMIT_NPROC unless the user is root.
"""

import contextlib
import ctypes
import platform
import resource
import struct
import sys

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_ALLOW, _KILL, _EPERM = 0x7FFF0000, 0x80000000, 0x00050001
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _ARCHITECTURE = 0, 4
"""Offsets in `struct seccomp_data`."""
_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_*, linux/audit.h."""
_CALLS = {
    # In this order: reading and writing of open files, memory, signals, waiting for a lock, clocks, chance, the end.
    # Each is named in Linux' arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
    "x86_64": (
        0, 1, 3, 5, 8, 19, 20, 9, 10, 11, 12, 25, 28, 13, 14, 15, 131, 219, 202, 24, 35, 230, 96, 228, 229, 98, 99, 100,
        204, 39, 63, 186, 334, 318, 60, 231,
    ),
    "aarch64": (
        63, 64, 57, 80, 62, 65, 66, 222, 226, 215, 214, 216, 233, 134, 135, 139, 132, 128, 98, 124, 101, 115, 169, 113,
        114, 165, 179, 153, 123, 172, 160, 178, 293, 278, 93, 94,
    ),
}  # fmt: skip
"""System calls that computing needs, by the kernel's numbers."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def limit(*, memory_bytes: int, cpu_seconds: int) -> list[str]:
    """Set the limits of this process for the rest of its life; returns the names of those that the system took.

    Args:
        memory_bytes: Address space.
        cpu_seconds: Of the processor, after which the kernel ends it.
    """
    held = []
    for name, value in (
        ("RLIMIT_AS", memory_bytes),
        ("RLIMIT_DATA", memory_bytes),
        ("RLIMIT_CPU", cpu_seconds),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NPROC", 0),
        ("RLIMIT_NOFILE", 3),
    ):
        number = getattr(resource, name, None)
        # Some systems know a limit and refuse to set it.
        with contextlib.suppress(ValueError, OSError):
            if number is not None:
                resource.setrlimit(number, (value, value))
                held.append(name)
    return held


def filter_calls() -> bool:
    """Refuse every system call that computing does not need, for good; whether the system can."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _CALLS:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    program = _program(machine)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = _Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p).value)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(header), 0, 0) == 0)


def _program(machine: str) -> bytes:
    """The filter in the kernel's language (linux/filter.h): `struct sock_filter` is code, jump, jump, operand."""
    calls = _CALLS[machine]
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _MACHINES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    steps += [(_EQUAL, len(calls) - place, 0, number) for place, number in enumerate(calls)]
    steps += [(_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
