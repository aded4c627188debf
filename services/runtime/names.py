"""Names that callers choose."""

import re

from stack_client.errors import InvalidArgumentError

_TENANT = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def check_tenant(tenant: str, *, field: str) -> None:
    """Refuse what is no tenant's name.

    Args:
        tenant: As the caller gave it.
        field: Of the request, for errors.

    Raises:
        InvalidArgumentError: If it is no plain short token.
    """
    if not _TENANT.fullmatch(tenant):
        raise InvalidArgumentError(
            f"{field} is no tenant's name; allowed: letters, digits, `_`, `.`, `:`, `-`, at most 128", field=field
        )


def check_printable(name: str, *, most: int, field: str) -> None:
    """Refuse a name that is too long to keep or that nobody could read.

    Args:
        name: As the caller gave it.
        most: Characters allowed.
        field: Of the request, for errors.

    Raises:
        InvalidArgumentError: If it is longer, or has characters that cannot be printed.
    """
    if len(name) > most:
        raise InvalidArgumentError(f"{field} has {len(name)} characters; at most {most} are allowed", field=field)
    if not name.isprintable():
        odd = next(letter for letter in name if not letter.isprintable())
        message = f"{field} {name[:40]!r} has a character that cannot be printed, U+{ord(odd):04X}: leave it out"
        raise InvalidArgumentError(message, field=field)
