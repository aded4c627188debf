"""The log of a supervised process: its output, in a file that is rotated by size."""

import os
import threading
from pathlib import Path


class LogFile:
    """Copies what a process writes into `path`; full files become `path.1` and up.

    The copying is a thread of its own: files are slow at times and must not hold up the supervisor's event loop.
    """

    def __init__(self, path: Path, *, max_bytes: int = 10_000_000, kept: int = 3) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._kept = kept
        self._threads: list[threading.Thread] = []

    def attach(self) -> int:
        """A file descriptor for the process's output; the caller closes it once the process has it."""
        reader, writer = os.pipe()
        thread = threading.Thread(target=self._copy, args=(reader,), name=f"log-{self.path.stem}", daemon=True)
        thread.start()
        self._threads = [item for item in self._threads if item.is_alive()] + [thread]
        return writer

    def close(self, *, timeout: float = 2.0) -> None:
        """Wait until everything that was written is in the file; blocks."""
        for thread in self._threads:
            thread.join(timeout)

    def tail(self, lines: int) -> list[str]:
        """The last lines."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 500 * lines))
                return file.read().decode(errors="replace").splitlines()[-lines:]
        except FileNotFoundError:
            return []

    def _copy(self, reader: int) -> None:
        file = self.path.open("ab", buffering=0)
        try:
            while chunk := os.read(reader, 65536):
                if file.tell() + len(chunk) > self._max_bytes:
                    file.close()
                    self._rotate()
                    file = self.path.open("ab", buffering=0)
                file.write(chunk)
        finally:
            file.close()
            os.close(reader)

    def _rotate(self) -> None:
        for number in range(self._kept - 1, -1, -1):
            full = self.path if number == 0 else self.path.with_name(f"{self.path.name}.{number}")
            if full.exists():
                full.replace(self.path.with_name(f"{self.path.name}.{number + 1}"))
