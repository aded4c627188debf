"""Folders in which untrusted code wrote: they are looked at without following links, and bounded.

Imports little, for processes that start with each call.
"""

import os
import stat
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

_DEPTH = 24
"""Folders within folders that are still looked into."""
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Usage(NamedTuple):
    """What a folder holds."""

    bytes: int
    """On disk; files with holes count what they take."""
    entries: int
    """Files, folders and links; counting stops a little above what was allowed."""


class Seen(NamedTuple):
    """What tells one state of a file from another."""

    modified: int
    size: int
    inode: int


def usage(*paths: str, most: int) -> Usage:
    """What some folders hold together; counting stops above `most` entries. Too deep folders count as too many."""
    total = entries = 0
    for path in paths:
        for _, status, deep in _walk(path):
            total += status.st_blocks * 512
            entries += most + 1 if deep else 1
            if entries > most:
                return Usage(total, entries)
    return Usage(total, entries)


def snapshot(path: str, *, most: int) -> dict[str, Seen]:
    """The regular files beneath a folder by their relative paths, `most` entries looked at."""
    found = {}
    for at, (entry, status, _) in enumerate(_walk(path)):
        if at >= most:
            break
        if stat.S_ISREG(status.st_mode):
            relative = os.path.relpath(entry, path)
            found[relative] = Seen(status.st_mtime_ns, status.st_size, status.st_ino)
    return found


def read(folder: str, relative: str, *, most: int) -> bytes | None:
    """A regular file beneath a folder; None if it is none, is reached through a link, or is longer than `most`."""
    *folders, name = relative.split("/")
    opened = []
    try:
        opened.append(os.open(folder, _OPEN | os.O_DIRECTORY))
        for part in folders:
            opened.append(os.open(part, _OPEN | os.O_DIRECTORY, dir_fd=opened[-1]))
        opened.append(os.open(name, _OPEN | os.O_NONBLOCK, dir_fd=opened[-1]))
        status = os.fstat(opened[-1])
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            return None
        with os.fdopen(opened.pop(), "rb") as file:
            data = file.read(most + 1)
        return data if len(data) <= most else None
    except OSError:
        return None
    finally:
        for number in opened:
            os.close(number)


def remove(path: str) -> None:
    """Delete a file or a folder, however deep and whatever its permissions; links are not followed."""
    command = ["rm", "-rf", "--", path]
    if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode != 0:  # noqa: S603
        subprocess.run(["chmod", "-R", "u+rwx", "--", path], check=False, stderr=subprocess.DEVNULL)  # noqa: S603, S607
        subprocess.run(command, check=True)  # noqa: S603


def _walk(path: str) -> Iterator[tuple[str, os.stat_result, bool]]:
    """Everything beneath a folder with its status, and whether it is a folder too deep to look into."""
    waiting = [(path, 0)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    status = _status(entry)
                    if status is None:
                        continue
                    inside = stat.S_ISDIR(status.st_mode)
                    if inside and depth < _DEPTH:
                        waiting.append((entry.path, depth + 1))
                    yield entry.path, status, inside and depth >= _DEPTH
        except OSError:  # gone meanwhile, or closed to us
            continue


def _status(entry: "os.DirEntry[str]") -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except OSError:
        return None
