"""Facts as terms, for indexes that look up terms: comparisons become sets of them.

`x"key"` stands for a key that is there, `e"key"=value` for a value or a member of a list, `r"key"=value` for a value
that has an order. Values are JSON, so types never mix.
"""

import hashlib
import json
from collections.abc import Iterator

from services.memory.filters import Facts

LONGEST = 1000
"""Characters of a value that is looked for as it is; longer ones by their hash."""


def fact_terms(facts: Facts) -> Iterator[str]:
    """The terms of a chunk's facts."""
    for key, value in facts.items():
        if value is None:
            continue
        yield key_term(key)
        for member in value if isinstance(value, list) else [value]:
            if isinstance(member, bool | int | float | str):
                yield equal_term(key, member)
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            yield f"{order_prefix(key)}{json.dumps(value)}"


def key_term(key: str) -> str:
    """The term of a key that is there."""
    return f"x{json.dumps(key)}"


def equal_term(key: str, value: bool | float | str) -> str:  # noqa: FBT001 (a value)
    """The term of a value, or of a member of a list."""
    whole = not isinstance(value, bool | str) and float(value) == value
    text = json.dumps(float(value) + 0.0 if whole else value)  # + 0.0: minus zero equals zero
    if len(text) > LONGEST:
        return f"h{json.dumps(key)}={hashlib.sha256(text.encode()).hexdigest()}"
    return f"e{json.dumps(key)}={text}"


def order_prefix(key: str) -> str:
    """How the terms of values with an order begin; the value follows as JSON."""
    return f"r{json.dumps(key)}="
