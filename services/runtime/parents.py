"""Die with the parent: a child must not outlive the process that supervises it, not even after kill -9."""

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, *, signal_number: int = signal.SIGTERM) -> None:
    """Have this process signalled when `parent`, the process that started it, is gone.

    Call it first thing in the child, from its main thread. On Linux the kernel does it (prctl(2)); the parent must
    have started the child from a thread that lives as long as itself. Elsewhere a thread looks once a second.

    Args:
        parent: The parent's process id as the parent knows it, so that a death before this call is noticed too.
        signal_number: What is sent; SIGTERM drains, SIGKILL is for processes that hold nothing.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    else:
        threading.Thread(target=_watch, args=(parent, signal_number), name="die-with-parent", daemon=True).start()
    if os.getppid() != parent:
        os.kill(os.getpid(), signal_number)


def _watch(parent: int, signal_number: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal_number)
