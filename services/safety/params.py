"""Reading a shield's parameters: every key is known and has a value that can be used, else it is refused by name."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from stack_client.errors import InvalidArgumentError


def refuse_unknown(params: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse keys that the provider does not know.

    Raises:
        InvalidArgumentError: Naming the first of them and those that are known.
    """
    known = sorted(known)
    for key in params:
        if key not in known:
            raise refusal(key, f"is unknown; this provider knows {', '.join(known)}")


def text(params: Mapping[str, Any], key: str, default: str = "") -> str:
    """A text.

    Raises:
        InvalidArgumentError: If it is something else.
    """
    value = params.get(key, default)
    if not isinstance(value, str):
        raise refusal(key, f"is {value!r}; give a text")
    return value


def choice(params: Mapping[str, Any], key: str, allowed: Iterable[str], *, default: str) -> str:
    """One of several texts; the default need not be one of them.

    Raises:
        InvalidArgumentError: If it is something else.
    """
    if key not in params:
        return default
    allowed = list(allowed)
    value = params[key]
    if value not in allowed:
        raise refusal(key, f"is {value!r}; give one of {', '.join(allowed)}")
    return str(value)


def flag(params: Mapping[str, Any], key: str, *, default: bool = False) -> bool:
    """True or false.

    Raises:
        InvalidArgumentError: If it is something else.
    """
    value = params.get(key, default)
    if not isinstance(value, bool):
        raise refusal(key, f"is {value!r}; give true or false")
    return value


def number(params: Mapping[str, Any], key: str, *, default: float, low: float, high: float) -> float:
    """A number from `low` to `high`.

    Raises:
        InvalidArgumentError: If it is something else.
    """
    value = params.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise refusal(key, f"is {value!r}; give a number from {low:g} to {high:g}")
    if not low <= value <= high:
        raise refusal(key, f"is {value:g}; give a number from {low:g} to {high:g}")
    return float(value)


def whole(params: Mapping[str, Any], key: str, *, default: int, low: int, high: int) -> int:
    """A whole number from `low` to `high`; a Struct's doubles count where they are whole.

    Raises:
        InvalidArgumentError: If it is something else.
    """
    value = number(params, key, default=default, low=low, high=high)
    if not value.is_integer():
        raise refusal(key, f"is {value:g}; give a whole number from {low} to {high}")
    return int(value)


def texts(params: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of texts, each once; empty when unset.

    Raises:
        InvalidArgumentError: If it is something else.
    """
    value = params.get(key, ())
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise refusal(key, f"is {value!r}; give a list of texts")
    return tuple(dict.fromkeys(value))


def refusal(key: str, complaint: str) -> InvalidArgumentError:
    """The error about one parameter: `params.<key>` and what is wrong with it."""
    return InvalidArgumentError(f"params.{key} {complaint}", field=f"params.{key}")
