"""CSV and JSON: records as lines of `name: value`, with an empty line between them."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from services.memory.parse.extract import Extract, Limits, RefusedError
from services.memory.parse.kinds import MIME_TYPES
from services.memory.parse.markup import escape_line

_SAMPLE = 64 * 1024
_MAX_FIELD = 10_000_000


def read_csv(text: str, *, kind: str, limits: Limits) -> Extract:
    """Rows under the names of the first one.

    Raises:
        RefusedError: If it is damaged or has no rows.
    """
    csv.field_size_limit(_MAX_FIELD)
    try:
        rows = csv.reader(io.StringIO(text, newline=""), **_dialect(text, kind))
        records = _within(_csv_records(rows), limits=limits)
    except csv.Error as error:
        raise RefusedError(f"it is no well-formed {kind.upper()} ({error}): export it again") from error
    if not records:
        raise RefusedError(f"this {kind.upper()} has no rows below its head: there is nothing to find")
    return Extract(text="\n\n".join(records), mime_type=MIME_TYPES[kind], structure="table")


def read_json(text: str, *, limits: Limits) -> Extract:
    """An array's members, or an object, as records.

    Raises:
        RefusedError: If it is not well-formed, too deep or empty.
    """
    value = _loaded(text, where="")
    members = value if isinstance(value, list) else [value]
    return _records(members, mime_type=MIME_TYPES["json"], limits=limits)


def read_jsonl(text: str, *, limits: Limits) -> Extract:
    """Each line's value as a record.

    Raises:
        RefusedError: If a line is not well-formed or too deep, or all are empty.
    """
    lines = enumerate(text.split("\n"), 1)
    values = [_loaded(line, where=f"line {number}: ") for number, line in lines if line.strip()]
    return _records(values, mime_type=MIME_TYPES["jsonl"], limits=limits)


def _dialect(text: str, kind: str) -> dict[str, Any]:
    if kind == "tsv":
        return {"delimiter": "\t"}
    try:
        found = csv.Sniffer().sniff(text[:_SAMPLE], delimiters=",;\t|")
    except csv.Error:
        return {"delimiter": ","}
    return {"delimiter": found.delimiter}


def _csv_records(rows: Iterator[list[str]]) -> Iterator[str]:
    names: list[str] = []
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if not names:
            names = [escape_line(name) or f"column {place}" for place, name in enumerate(row, 1)]
            continue
        names += [f"column {place}" for place in range(len(names) + 1, len(row) + 1)]
        cells = ((name, escape_line(cell)) for name, cell in zip(names, row, strict=False))
        yield "\n".join(f"{name}: {cell}" for name, cell in cells if cell)


def _loaded(text: str, *, where: str) -> Any:  # noqa: ANN401 (JSON)
    try:
        return json.loads(text)
    except RecursionError:
        raise RefusedError(f"{where}it is nested too deep: flatten it") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise RefusedError(
            f"{where}it is no well-formed JSON ({error.msg}: {place}): mend it, or name it .txt"
        ) from error
    except ValueError as error:  # numbers of thousands of digits
        raise RefusedError(f"{where}it has a value that cannot be read ({error}): mend it") from error


def _records(values: list[Any], *, mime_type: str, limits: Limits) -> Extract:
    texts = _within(("\n".join(_lines(value, limits=limits)) for value in values), limits=limits)
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise RefusedError("this JSON has no values: there is nothing to find")
    return Extract(text="\n\n".join(texts), mime_type=mime_type, structure="table")


def _lines(value: Any, *, limits: Limits) -> Iterator[str]:  # noqa: ANN401 (JSON)
    """`path: value` of every leaf, in order."""
    waiting: list[tuple[str, int, Any]] = [("", 0, value)]
    while waiting:
        path, depth, item = waiting.pop()
        if depth > limits.depth:
            raise RefusedError(f"it is nested more than {limits.depth} deep: flatten it")
        if isinstance(item, dict):
            inner = [(f"{path}.{key}" if path else str(key), depth + 1, each) for key, each in item.items()]
            waiting += reversed(inner)
        elif isinstance(item, list) and any(isinstance(each, dict | list) for each in item):
            inner = [(f"{path}[{place}]", depth + 1, each) for place, each in enumerate(item)]
            waiting += reversed(inner)
        elif item is not None and item not in ("", [], {}):
            leaf = ", ".join(_leaf(each) for each in item) if isinstance(item, list) else _leaf(item)
            yield f"{path}: {leaf}" if path else leaf


def _leaf(value: Any) -> str:  # noqa: ANN401 (JSON)
    if isinstance(value, str):
        return value.strip().replace("\r\n", "\n").replace("\r", "\n")
    return json.dumps(value)


def _within(records: Iterator[str], *, limits: Limits) -> list[str]:
    result, size = [], 0
    for record in records:
        result.append(record)
        size += len(record) + 2
        if size > limits.characters:
            message = f"it has more than {limits.characters} characters: split it"
            raise RefusedError(message, reason="too_large")
    return result
