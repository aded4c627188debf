"""Taking a process's rights away: limits of the kernel, and filters of its calls.

Two filters: `filter_calls` lets through only what computing needs, for programs that have everything in memory;
`refuse_calls` refuses what a program with files, threads and children of its own has no business with.
It imports nothing of ours, for it is also read alone inside sandboxes.

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

_PR_SET_NO_NEW_PRIVS, _SET_FILTER, _ALL_THREADS = 38, 1, 1
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
_LOAD, _EQUAL, _AT_LEAST, _SHARES, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16
"""Offsets in `struct seccomp_data`; of an argument its low half, on machines that store that first."""
_NEW_NAMESPACES, _A_THREAD = 0x7E020000, 0x00010000
"""CLONE_NEW* and CLONE_THREAD, linux/sched.h."""
_AF_UNIX, _TIOCSTI = 1, 0x5412
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

_SECCOMP, _CLONE, _SOCKET, _IOCTL = (317, 277), (56, 220), (41, 198), (16, 29)
_CLONE3, _NEWEST = 435, 451
"""The last call of Linux 6.6; the same number everywhere."""
_SYSTEM = (
    # acct, add_key, adjtimex, bpf, chroot, clock_adjtime, clock_settime, delete_module, fanotify_init,
    # fanotify_mark, finit_module, fsconfig, fsmount, fsopen, fspick, init_module, io_uring_enter,
    # io_uring_register, io_uring_setup, ioperm, iopl, kcmp, kexec_file_load, kexec_load, keyctl, lookup_dcookie,
    # mount, mount_setattr, move_mount, name_to_handle_at, nfsservctl, open_by_handle_at, open_tree,
    # perf_event_open, personality, pidfd_getfd, pivot_root, process_madvise, process_vm_readv, process_vm_writev,
    # ptrace, quotactl, quotactl_fd, reboot, request_key, setdomainname, sethostname, setns, settimeofday,
    # swapoff, swapon, sysfs, syslog, umount2, unshare, userfaultfd, uselib, vhangup, vmsplice, mknod, mknodat,
    # memfd_secret
    (163, 89), (248, 217), (159, 171), (321, 280), (161, 51), (305, 266), (227, 112), (176, 106), (300, 262),
    (301, 263), (313, 273), (431, 431), (432, 432), (430, 430), (433, 433), (175, 105), (426, 426), (427, 427),
    (425, 425), (173, -1), (172, -1), (312, 272), (320, 294), (246, 104), (250, 219), (212, 18), (165, 40), (442,
    442), (429, 429), (303, 264), (180, 42), (304, 265), (428, 428), (298, 241), (135, 92), (438, 438), (155, 41),
    (440, 440), (310, 270), (311, 271), (101, 117), (179, 60), (443, 443), (169, 142), (249, 218), (171, 162),
    (170, 161), (308, 268), (164, 170), (168, 225), (167, 224), (139, -1), (103, 116), (166, 39), (272, 97), (323,
    282), (134, -1), (153, 58), (278, 75), (133, -1), (259, 33), (447, 447),
)  # fmt: skip
"""Calls on the system itself, by their numbers on x86-64 and arm64; -1: not there."""
_PROCESSES = (
    # execve, execveat, fork, vfork, kill, tkill, pidfd_send_signal, pidfd_open, rt_sigqueueinfo,
    # rt_tgsigqueueinfo
    (59, 221), (322, 281), (57, -1), (58, -1), (62, 129), (200, 130), (424, 424), (434, 434), (129, 138), (297,
    240),
)  # fmt: skip
"""Calls on other processes, but clone."""
_NETWORK = (
    # socket, socketpair, connect, bind, listen, accept, accept4
    (41, 198), (53, 199), (42, 203), (49, 200), (50, 201), (43, 202), (288, 242),
)  # fmt: skip
"""Calls on sockets."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def limit(
    *,
    memory_bytes: int,
    cpu_seconds: int | None,
    reserved_bytes: int = 0,
    file_bytes: int = 0,
    processes: int | None = 0,
    files: int = 3,
) -> list[str]:
    """Set the limits of this process for the rest of its life; returns the names of those that the system took.

    Args:
        memory_bytes: Memory that it can write.
        cpu_seconds: Of the processor, after which the kernel ends it; None sets none.
        reserved_bytes: Address space beyond that, for programs that reserve without using.
        file_bytes: Length of a file that it writes.
        processes: Processes and threads of its user, where that user is not root; None sets none.
        files: Descriptors open at once.
    """
    held = []
    for name, value in (
        ("RLIMIT_AS", memory_bytes + reserved_bytes),
        ("RLIMIT_DATA", memory_bytes),
        ("RLIMIT_CPU", cpu_seconds),
        ("RLIMIT_FSIZE", file_bytes),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NPROC", processes),
        ("RLIMIT_NOFILE", files),
    ):
        number = getattr(resource, name, None)
        # Some systems know a limit and refuse to set it.
        with contextlib.suppress(ValueError, OSError):
            if number is not None and value is not None:
                resource.setrlimit(number, (value, value))
                held.append(name)
    return held


def filter_calls() -> bool:
    """Refuse every system call that computing does not need, for good; whether the system can."""
    machine = platform.machine()
    return sys.platform == "linux" and machine in _CALLS and _install(_program(machine), machine)


def refuse_calls(*, processes: bool, sockets: bool) -> bool:
    """Refuse the system calls by which a program could reach the system, for good; whether the system can.

    What is left is files (which mounts, Landlock or both must bound), memory, threads and time. Calls that are newer
    than this list do not exist for the program.

    Args:
        processes: Whether it may start programs and send signals; never in namespaces of its own.
        sockets: Whether it may make sockets, of the family AF_UNIX only.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _MACHINES:
        return False
    column = list(_MACHINES).index(machine)
    calls = [*_SYSTEM, *(() if processes else _PROCESSES), *(() if sockets else _NETWORK)]
    numbers = [call[column] for call in calls if call[column] >= 0]
    return _install(_refusals(machine, numbers, column=column, processes=processes), machine)


def _install(program: bytes, machine: str) -> bool:
    """Hand a filter to the kernel, for all threads of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = _Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p).value)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    number = _SECCOMP[list(_MACHINES).index(machine)]
    return bool(libc.syscall(number, _SET_FILTER, _ALL_THREADS, ctypes.byref(header)) == 0)


def _refusals(machine: str, numbers: list[int], *, column: int, processes: bool) -> bytes:
    """A filter that refuses some calls, and some arguments of others."""

    def unless(code: int, operand: int, verdict: int) -> list[tuple[int, int, int, int]]:
        return [(code, 0, 1, operand), (_RETURN, 0, 0, verdict)]

    steps = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, _MACHINES[machine]), (_RETURN, 0, 0, _KILL)]
    steps += [(_LOAD, 0, 0, _NUMBER), *unless(_AT_LEAST, _NEWEST + 1, _ENOSYS)]
    # Its flags lie in memory, where a filter cannot look; the C library falls back to clone.
    steps += unless(_EQUAL, _CLONE3, _ENOSYS)
    for number in numbers:
        steps += unless(_EQUAL, number, _EPERM)
    clone, ioctl, socket = _CLONE[column], _IOCTL[column], _SOCKET[column]
    if processes:
        steps += [(_EQUAL, 0, 4, clone), (_LOAD, 0, 0, _ARGUMENT), *unless(_SHARES, _NEW_NAMESPACES, _EPERM)]
    else:
        steps += [(_EQUAL, 0, 4, clone), (_LOAD, 0, 0, _ARGUMENT), (_SHARES, 1, 0, _A_THREAD), (_RETURN, 0, 0, _EPERM)]
    steps += [(_RETURN, 0, 0, _ALLOW)]
    steps += [(_EQUAL, 0, 4, socket), (_LOAD, 0, 0, _ARGUMENT), (_EQUAL, 1, 0, _AF_UNIX), (_RETURN, 0, 0, _EPERM)]
    steps += [(_RETURN, 0, 0, _ALLOW)]
    steps += [(_EQUAL, 0, 3, ioctl), (_LOAD, 0, 0, _ARGUMENT + 8), *unless(_EQUAL, _TIOCSTI, _EPERM)]
    steps += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


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
