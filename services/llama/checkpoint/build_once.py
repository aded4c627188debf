"""Files and folders that are made once and found again by every later process.

Safe against kills and races: the target is built as `NAME.partial` while holding a lock on `NAME.lock`, and renamed to
`NAME` when complete. The kernel drops the lock of a killed process, so whoever holds it may delete the remains.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def build_once(target: Path, build: Callable[[Path], None]) -> None:
    """Make `target` with `build`, which is handed the path to write to, unless it is there already.

    Raises:
        OSError: The folder cannot be written; and whatever `build` raises. Nothing is left behind.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target):
        if target.exists():  # another process made it while this one waited
            return
        _sweep(target.parent)
        partial = target.with_name(target.name + ".partial")
        _remove(partial)
        try:
            build(partial)
            sync(partial)
            partial.rename(target)
            sync(target.parent)
        finally:
            _remove(partial)


def sync(path: Path) -> None:
    """Make a file or a folder's entries survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _lock(target: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock that goes with `target`; yields whether it was got, which may be False only without `wait`."""
    with target.with_name(target.name + ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _sweep(folder: Path) -> None:
    """Delete what killed builds of other targets left; those still running hold their lock and are passed over."""
    for partial in folder.glob("*.partial"):
        target = partial.with_suffix("")
        with _lock(target, wait=False) as held:
            if held:
                _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
