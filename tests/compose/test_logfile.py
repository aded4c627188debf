"""Logs of processes."""

import os
from pathlib import Path

from compose.logfile import LogFile


def test_a_full_log_is_rotated_and_old_ones_are_dropped(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "x.log", max_bytes=1000, kept=2)
    for number in range(10):
        writer = log.attach()
        os.write(writer, f"{number}".encode() * 600)
        os.close(writer)
        log.close()
    assert {path.name: path.read_text()[0] for path in tmp_path.iterdir()} == {
        "x.log": "9",
        "x.log.1": "8",
        "x.log.2": "7",
    }


def test_the_tail_is_the_last_lines(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "x.log")
    assert log.tail(3) == []
    writer = log.attach()
    os.write(writer, b"".join(b"line %d\n" % number for number in range(100)))
    os.close(writer)
    log.close()
    assert log.tail(2) == ["line 98", "line 99"]
