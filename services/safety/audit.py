"""The log of verdicts: append-only files of JSON lines, each record holding the hash of the one before.

A record says who was judged, on which surface, by which shield under which policy, and the verdict. The text is in it
as a hash with a key of this log (a plain hash of a short text could be guessed), or as it is where that is configured.
A head beside the files names the last record, so that a cut tail shows. One process writes one log.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import os
import secrets
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FIRST = "0" * 64
RECENT = 10_000


class AuditError(Exception):
    """The log cannot be written or read; the message names the file."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a verification found."""

    records: int
    """Records that are in order."""
    head: str
    """Hash of the last of them."""
    problem: str = ""
    """The first thing wrong, with file and line; empty when there is none."""


class AuditLog:
    """Writer of one chain.

    Args:
        folder: Of the log.
        keep_text: Whether the judged text itself is kept.
        segment_bytes: Size from which a new file is begun.
    """

    def __init__(self, folder: Path, *, keep_text: bool, segment_bytes: int) -> None:
        self._folder = folder
        self._keep_text = keep_text
        self._segment_bytes = segment_bytes
        self._key = b""
        self._sequence = 0
        self._last = FIRST
        self._file = folder / _segment_name(1)
        self._lock = asyncio.Lock()
        self._recent: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def open(self) -> None:
        """Go on with the chain of the folder; half a line that a killed process left is cut off.

        Only the newest file is checked, for the whole log may be large; `verify` checks all.

        Raises:
            AuditError: If the folder cannot be used, or the chain is damaged: a new record would hide that.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._key = _key(self._folder / "key")
            _cut_half_line(self._folder)
        except OSError as error:
            raise AuditError(f"{self._folder}: {error.strerror}") from error
        report = _follow(segments(self._folder)[-1:], told=_told(self._folder), from_start=False)
        if report.problem:
            raise AuditError(f"the audit log is damaged: {report.problem}")
        self._sequence, self._last = report.records, report.head
        files = segments(self._folder)
        self._file = files[-1] if files else self._file

    def set_aside(self) -> Path:
        """Keep a damaged log under another name, so that a new one can begin; returns where."""
        stamp = datetime.now(tz=UTC).strftime("%Y%m%dT%H%M%S%f")
        aside = self._folder.with_name(f"{self._folder.name}-damaged-{stamp}")
        self._folder.rename(aside)
        return aside

    async def append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write records, in order, and see them on the disk's side of the process.

        Args:
            entries: Facts of each; `text` is replaced by its hash, `verdict_id` finds it again.

        Raises:
            AuditError: If they cannot be written; none of them is in the log then.
        """
        async with self._lock:
            writing = asyncio.ensure_future(asyncio.to_thread(self._write, entries))
            cancelled: asyncio.CancelledError | None = None
            while not writing.done():
                try:
                    await asyncio.wait([writing])
                except asyncio.CancelledError as error:  # the thread writes on; nobody may write beside it
                    cancelled = error
            if cancelled is not None:
                raise cancelled
            writing.result()

    def find(self, verdict_id: str) -> dict[str, Any] | None:
        """The record of a verdict, the newest first."""
        if verdict_id in self._recent:
            return self._recent[verdict_id]
        needle = json.dumps(verdict_id)
        for file in reversed(segments(self._folder)):
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    if needle in line:
                        record: dict[str, Any] = json.loads(line)
                        if record.get("verdict_id") == verdict_id:
                            return record
        return None

    def _write(self, entries: Sequence[Mapping[str, Any]]) -> None:
        sequence, last, lines, records = self._sequence, self._last, [], []
        for entry in entries:
            sequence += 1
            record = self._record(entry, sequence=sequence, previous=last)
            last = record["hash"]
            records.append(record)
            lines.append(json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n")
        try:
            if self._file.exists() and self._file.stat().st_size >= self._segment_bytes:
                self._file = self._folder / _segment_name(int(self._file.stem) + 1)
            size = self._file.stat().st_size if self._file.exists() else 0
            try:
                with self._file.open("a", encoding="utf-8") as log:
                    log.writelines(lines)
            except OSError:
                os.truncate(self._file, size)
                raise
            _write_head(self._folder, sequence, last)
        except OSError as error:
            raise AuditError(f"{self._file}: {error.strerror}") from error
        self._sequence, self._last = sequence, last
        for record in records:
            self._recent[record["verdict_id"]] = {key: value for key, value in record.items() if key != "text"}
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def _record(self, entry: Mapping[str, Any], *, sequence: int, previous: str) -> dict[str, Any]:
        text = str(entry.get("text", ""))
        record = {
            **entry,
            "sequence": sequence,
            "time": datetime.now(tz=UTC).isoformat(timespec="milliseconds"),
            "previous": previous,
            "text_hmac": hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest(),
            "text_characters": len(text),
        }
        if not self._keep_text:
            record.pop("text", None)
        record["hash"] = _hash(record)
        return record


def verify(folder: Path) -> Report:
    """Follow the chain from its first record to its head.

    Raises:
        AuditError: If there is no log.
    """
    if not folder.is_dir():
        raise AuditError(f"there is no audit log in {folder}")
    # The head first: a writer writes records before it, so all that it names are there.
    told = _told(folder)
    report = _follow(segments(folder), told=told, from_start=True)
    if told is None and report.records and _told(folder) is not None:  # the first records were written meanwhile
        return verify(folder)
    return report


def _follow(files: Sequence[Path], *, told: tuple[int, str] | str | None, from_start: bool) -> Report:
    """Follow the chain through files.

    Args:
        files: In order.
        told: Sequence and hash that the head names, or what is wrong with it; None without a head.
        from_start: Whether the first file is the log's first.
    """
    sequence, last, named = 0, FIRST, ""
    for expected, file in enumerate(files, start=1 if from_start or not files else int(files[0].stem)):
        if int(file.stem) != expected:
            missing = file.with_name(_segment_name(expected))
            return Report(records=sequence, head=last, problem=f"{missing} is missing")
        for number, line in _lines(file):
            if not line.endswith("\n") and file == files[-1]:
                break  # a record that is being written, or that a killed process did not finish
            if not from_start and not sequence:
                sequence, last = _start_of(line)
            problem = _problem(line, sequence=sequence + 1, previous=last)
            if problem:
                return Report(records=sequence, head=last, problem=f"{file}, line {number}: {problem}")
            record = json.loads(line)
            sequence, last = record["sequence"], record["hash"]
            if isinstance(told, tuple) and told[0] == sequence:
                named = last
    return Report(records=sequence, head=last, problem=_head_problem(told, sequence=sequence, named=named))


def _start_of(line: str) -> tuple[int, str]:
    """What the first record of a later file follows; nonsense is found by whoever checks the record."""
    try:
        record = json.loads(line)
        return int(record["sequence"]) - 1, str(record["previous"])
    except (ValueError, KeyError, TypeError):
        return 0, FIRST


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """All records, oldest first, as they are.

    Raises:
        AuditError: If there is no log, or a line is no record.
    """
    if not folder.is_dir():
        raise AuditError(f"there is no audit log in {folder}")
    for file in segments(folder):
        for number, line in _lines(file):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise AuditError(f"{file}, line {number}: is no record") from error


def segments(folder: Path) -> list[Path]:
    """The files of a log, in order."""
    return sorted(folder.glob("[0-9]*.jsonl"))


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        yield from enumerate(lines, start=1)


def _problem(line: str, *, sequence: int, previous: str) -> str:
    """What is wrong with a record in its place; empty when nothing is."""
    try:
        record = json.loads(line)
    except ValueError:
        return "is no record"
    if not isinstance(record, dict) or record.get("hash") != _hash(record):
        return "the record was changed"
    if record.get("sequence") != sequence:
        return f"record {sequence} is missing; {record.get('sequence')} stands here"
    if record.get("previous") != previous:
        return "does not follow the record before"
    return ""


def _told(folder: Path) -> tuple[int, str] | str | None:
    """Sequence and hash that the head names; what is wrong with it; None without a head."""
    head = folder / "head.json"
    try:
        told = json.loads(head.read_text())
        return int(told["sequence"]), str(told["hash"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return f"{head} is damaged"


def _head_problem(told: tuple[int, str] | str | None, *, sequence: int, named: str) -> str:
    """Whether records after the last one are gone. A process that was killed may have written one batch more."""
    match told:
        case None:
            return "the head is missing" if sequence else ""
        case str():
            return told
        case number, digest:
            if number > sequence:
                return f"the head names record {number}, but the log ends with {sequence}: its tail was cut"
            return "" if number == 0 or named == digest else f"the head names another record {number}"


def _hash(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record's canonical form, without the hash itself."""
    rest = {key: value for key, value in record.items() if key != "hash"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()


def _write_head(folder: Path, sequence: int, last: str) -> None:
    scratch = folder / "head.new"
    scratch.write_text(json.dumps({"sequence": sequence, "hash": last}))
    scratch.replace(folder / "head.json")


def _key(file: Path) -> bytes:
    if not file.exists():
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as created:
            created.write(secrets.token_bytes(32))
    return file.read_bytes()


def _cut_half_line(folder: Path) -> None:
    """Take off what a killed process wrote of its last record; nobody was told that it was written."""
    files = segments(folder)
    if not files or not files[-1].stat().st_size:
        return
    with files[-1].open("rb+") as log:
        content = log.read()
        end = content.rfind(b"\n") + 1
        if end != len(content):
            logger.warning("audit log %s ended in half a record; it is cut off", files[-1])
            log.truncate(end)


def _segment_name(number: int) -> str:
    return f"{number:06d}.jsonl"
