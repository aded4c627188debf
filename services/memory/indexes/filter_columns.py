"""Facts of many chunks in memory, for filters as boolean masks.

Each key is a column of codes, one for each distinct value; 0 means the key is missing. A comparison is answered once
for each distinct value and looked up for the rows, so its cost is that of one numpy gather.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from services.memory.filters import And, Compare, Facts, Filter, Not, Or, Scalar

Mask: TypeAlias = npt.NDArray[np.bool_]
Rows: TypeAlias = npt.NDArray[np.intp]
FIRST_ROWS = 1024

_NUMBERS: Mapping[str, Callable[[Any, float], Mask]] = {
    "gt": np.greater,
    "gte": np.greater_equal,
    "lt": np.less,
    "lte": np.less_equal,
}
_STRINGS: Mapping[str, Callable[[str, str], bool]] = {
    "gt": lambda have, want: have > want,
    "gte": lambda have, want: have >= want,
    "lt": lambda have, want: have < want,
    "lte": lambda have, want: have <= want,
}


class FactColumns:
    """The facts of rows 0 to `len(columns)` - 1."""

    def __init__(self) -> None:
        self._rows = 0
        self._columns: dict[str, _Column] = {}

    def __len__(self) -> int:
        return self._rows

    def append(self, facts: Sequence[Facts]) -> None:
        """Add rows at the end."""
        start, self._rows = self._rows, self._rows + len(facts)
        for row, one in enumerate(facts, start):
            for key, value in one.items():
                if value is None:
                    continue
                column = self._columns.get(key)
                if column is None:
                    column = self._columns[key] = _Column()
                column.set(row, value)

    def keep(self, rows: Rows) -> None:
        """Only these rows, in this order."""
        for column in self._columns.values():
            column.keep(rows, self._rows)
        self._rows = len(rows)

    def mask(self, wanted: Filter) -> Mask:
        """Which rows match."""
        match wanted:
            case And(filters):
                return functools.reduce(np.logical_and, (self.mask(one) for one in filters), self._all(matching=True))
            case Or(filters):
                return functools.reduce(np.logical_or, (self.mask(one) for one in filters), self._all(matching=False))
            case Not(one):
                return ~self.mask(one)
            case Compare():
                column = self._columns.get(wanted.key) or _Column()
                answers = column.answers(wanted)
                return answers[column.codes(self._rows)]

    def _all(self, *, matching: bool) -> Mask:
        return np.full(self._rows, matching)


class _Column:
    def __init__(self) -> None:
        self._codes = np.zeros(FIRST_ROWS, np.int32)
        self._known: dict[tuple[str, Any], int] = {}
        self._strings: list[tuple[int, str]] = []
        self._numbers: list[tuple[int, float]] = []
        # The same as arrays, as of so many.
        self._number_codes: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._number_values: npt.NDArray[np.float64] = np.zeros(0)
        self._count = 1
        # The codes of values that are a scalar, or lists that contain it.
        self._holding: dict[tuple[str, Scalar], list[int]] = {}

    def codes(self, rows: int) -> npt.NDArray[np.int32]:
        self._reserve(rows)
        return self._codes[:rows]

    def set(self, row: int, value: Any) -> None:  # noqa: ANN401 (JSON)
        self._reserve(row + 1)
        kind = _kind(value)
        key = (kind, value) if kind != "other" else (kind, json.dumps(value, sort_keys=True))
        code = self._known.get(key)
        if code is None:
            code = self._known[key] = self._count
            self._count += 1
            self._remember(code, kind, value)
        self._codes[row] = code

    def keep(self, rows: Rows, count: int) -> None:
        self._codes = self.codes(count)[rows]

    def answers(self, wanted: Compare) -> Mask:
        """For each code, whether its value matches."""
        result = np.zeros(self._count, np.bool_)
        match wanted.operator:
            case "exists":
                result[1:] = True
                return result if wanted.value else ~result
            case "eq" | "ne" | "in" | "nin":
                for value in wanted.value if isinstance(wanted.value, tuple) else (wanted.value,):
                    result[self._holding.get((_kind(value), value), [])] = True
                return result if wanted.operator in {"eq", "in"} else ~result
        if isinstance(wanted.value, str):
            compare = _STRINGS[wanted.operator]
            result[[code for code, value in self._strings if compare(value, wanted.value)]] = True
        elif _kind(wanted.value) == "number" and self._numbers:
            if len(self._number_codes) != len(self._numbers):
                codes, values = zip(*self._numbers, strict=True)
                self._number_codes, self._number_values = np.array(codes), np.array(values, np.float64)
            assert isinstance(wanted.value, float | int)
            result[self._number_codes] = _NUMBERS[wanted.operator](self._number_values, wanted.value)
        return result

    def _remember(self, code: int, kind: str, value: Any) -> None:  # noqa: ANN401 (JSON)
        if kind == "string":
            self._strings.append((code, value))
        elif kind == "number":
            self._numbers.append((code, value))
        for member in value if isinstance(value, list) else [value]:
            member_kind = _kind(member)
            if member_kind != "other":
                codes = self._holding.setdefault((member_kind, member), [])
                if not codes or codes[-1] != code:
                    codes.append(code)

    def _reserve(self, rows: int) -> None:
        if rows > len(self._codes):
            grown = np.zeros(max(rows, 2 * len(self._codes)), np.int32)
            grown[: len(self._codes)] = self._codes
            self._codes = grown


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "other"
