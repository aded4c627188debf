"""A Redis of our own behind a unix socket."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_SECONDS = 10.0


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[str]:
    """Its URL while it listens on `r.sock` of a folder; skips where there is none, unless REQUIRE_REDIS=1."""
    program = shutil.which("redis-server")
    if program is None:
        if os.environ.get("REQUIRE_REDIS") == "1":
            raise FileNotFoundError("redis-server is not installed")
        pytest.skip("needs Redis: apt-get install redis-server")
    place = folder / "r.sock"
    arguments = [program, "--port", "0", "--unixsocket", str(place), "--save", "", "--dir", str(folder), *options]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as server:
        try:
            _wait(place)
            yield f"unix://{place}"
        finally:
            server.kill()


def _wait(place: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                return probe.connect(str(place))
            except OSError:
                if time.monotonic() > end:
                    raise
        time.sleep(0.01)
