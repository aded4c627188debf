"""What a Llama Guard's answer means. Only the one word `safe` is safe; what says nothing clear is indeterminate."""

import re
from dataclasses import dataclass
from typing import Literal

from services.safety.guard.categories import CategorySet

REPLY_CHARS = 2000
"""A longer reply is no list of codes."""
_SAFE = re.compile("safe", re.IGNORECASE | re.ASCII)
_UNSAFE = re.compile(r"unsafe((?:[\s,]*[A-Z]\d{1,3}(?!\d))*)[\s,]*", re.IGNORECASE | re.ASCII)
_BEGINS_UNSAFE = re.compile(r"unsafe(?![\w-])", re.IGNORECASE)
_CODE = re.compile(r"[A-Z]\d{1,3}", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A guard's answer, understood."""

    verdict: Literal["safe", "unsafe", "excluded", "indeterminate"]
    """`excluded`: unsafe, but only in categories that the shield leaves out."""
    own_codes: tuple[str, ...] = ()
    """Enabled codes, each once, in the model version's own numbering."""
    excluded_codes: tuple[str, ...] = ()
    """Own codes named that the shield leaves out."""
    unknown_codes: tuple[str, ...] = ()
    """Codes named that the version does not have."""


def parse_reply(text: str, categories: CategorySet, *, complete: bool = True) -> Reply:
    """Read an answer; never fails.

    Args:
        text: The answer as generated.
        categories: The shield's categories.
        complete: Whether the model ended it; one that was cut off could have gone on.
    """
    text = text.strip()
    if not complete or len(text) > REPLY_CHARS:
        return _odd(text)
    if _SAFE.fullmatch(text):
        return Reply(verdict="safe")
    match = _UNSAFE.fullmatch(text)
    if match is None:
        return _odd(text)
    codes = tuple(dict.fromkeys(code.upper() for code in _CODE.findall(match[1])))
    excluded = tuple(code for code in codes if code in categories.excluded)
    unknown = tuple(code for code in codes if not categories.knows(code))
    own = tuple(code for code in codes if code not in excluded and code not in unknown)
    only_excluded = bool(excluded) and not own and not unknown
    return Reply(
        verdict="excluded" if only_excluded else "unsafe",
        own_codes=own,
        excluded_codes=excluded,
        unknown_codes=unknown,
    )


def _odd(text: str) -> Reply:
    """An answer in another form than the trained one: its first word decides if that is `unsafe`, else nothing does."""
    return Reply(verdict="unsafe" if _BEGINS_UNSAFE.match(text) else "indeterminate")
