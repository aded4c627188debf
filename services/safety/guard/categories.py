"""The categories that one shield asks a Llama Guard about: the version's own, less the excluded, plus custom ones."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from services.safety import params as read
from services.safety.guard.profiles import HAZARDS, PROFILES, Profile

CUSTOM_CODE = re.compile(r"C[1-9][0-9]?")
NAME_CHARS = 80
DESCRIPTION_CHARS = 2000
_FRAMING = re.compile(r"<\||\|>|\[/?INST\]|<(BEGIN|END) ", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Custom:
    """A category of the operator's own."""

    name: str
    """Short name."""
    description: str = ""
    """What belongs to it; empty = the name says it."""


@dataclass(frozen=True, kw_only=True)
class CategorySet:
    """The categories of one shield under one profile."""

    profile: Profile
    """The version."""
    excluded: frozenset[str] = frozenset()
    """Own codes that are not asked about."""
    custom: Mapping[str, Custom]
    """Added categories by code."""

    @property
    def is_default(self) -> bool:
        """Whether it is exactly what the version was trained on."""
        return not self.excluded and not self.custom

    def lines(self) -> dict[str, str]:
        """What the prompt says about each enabled category, by own code: the name, a full stop, and a description."""
        own = {code: f"{name}." for code, name in self.profile.categories.items() if code not in self.excluded}
        for code, custom in self.custom.items():
            own[code] = f"{custom.name}." + (f"\n{custom.description}" if custom.description else "")
        return own

    def name_of(self, own: str) -> str:
        """The short name of an own or custom code."""
        return self.custom[own].name if own in self.custom else self.profile.categories[own]

    def knows(self, own: str) -> bool:
        """Whether the code belongs to the version or was added, enabled or not."""
        return own in self.custom or own in self.profile.categories


def read_custom(params: Mapping[str, Any]) -> dict[str, Custom]:
    """The parameter `categories`: `{"C1": {"name": ..., "description": ...}}`, in the order of the codes' numbers.

    Raises:
        InvalidArgumentError: If a code, key or text cannot be used.
    """
    value = params.get("categories", {})
    if not isinstance(value, Mapping):
        raise read.refusal("categories", "is no object; write {C1: {name: ..., description: ...}}")
    custom = {str(code): _read_one(str(code), entry) for code, entry in value.items()}
    return dict(sorted(custom.items(), key=lambda item: int(item[0][1:])))


def _read_one(code: str, entry: object) -> Custom:
    key = f"categories.{code}"
    if not CUSTOM_CODE.fullmatch(code):
        raise read.refusal(key, "is no code for an added category; use C1 to C99")
    if not isinstance(entry, Mapping) or set(entry) - {"name", "description"}:
        raise read.refusal(key, "is no category; write {name: ..., description: ...}")
    name, description = entry.get("name", ""), entry.get("description", "")
    if not isinstance(name, str) or not 0 < len(name.strip()) <= NAME_CHARS or "\n" in name:
        raise read.refusal(f"{key}.name", f"is {name!r}; give one line of 1 to {NAME_CHARS} characters")
    if not isinstance(description, str) or len(description) > DESCRIPTION_CHARS:
        raise read.refusal(f"{key}.description", f"is no text of up to {DESCRIPTION_CHARS} characters")
    for text in (name, description):
        if _FRAMING.search(text):
            raise read.refusal(key, "holds a special token or a marker line of the prompt; write it without")
    return Custom(name=name.strip().rstrip("."), description=description.strip())


def check_codes(excluded: Collection[str], custom: Mapping[str, Custom], profile: Profile | None) -> None:
    """Check common codes that are to be excluded; without a profile against every version's.

    Raises:
        InvalidArgumentError: If one is unknown to the version, or nothing would be left.
    """
    known = [*{profile.common_code(own): None for own in profile.categories}] if profile else [*HAZARDS]
    for code in excluded:
        if code in custom:
            raise read.refusal("excluded_categories", f"holds {code}, which categories adds; leave one of them out")
        if code not in known:
            of = f"{profile.name} has" if profile else "known are"
            raise read.refusal("excluded_categories", f"holds {code!r}; {of} {', '.join(known)}")
    if not custom and set(known) <= set(excluded):
        raise read.refusal("excluded_categories", "excludes every category; unregister the shield instead")


def category_set(profile: Profile, *, excluded: Collection[str], custom: Mapping[str, Custom]) -> CategorySet:
    """The shield's categories under a profile; `excluded` are common codes.

    Raises:
        InvalidArgumentError: If a code is unknown to the version, or nothing would be left.
    """
    check_codes(excluded, custom, profile)
    own = frozenset(code for code in profile.categories if profile.common_code(code) in excluded)
    return CategorySet(profile=profile, excluded=own, custom=custom)


def profile_named(name: str) -> Profile:
    """The version of this name.

    Raises:
        InvalidArgumentError: If there is none.
    """
    if name not in PROFILES:
        raise read.refusal("profile", f"is {name!r}; known are {', '.join(PROFILES)}")
    return PROFILES[name]
