"""Lists of hosts, as `egress_hosts` gives them."""

import re
from collections.abc import Iterable

from stack_client.errors import InvalidArgumentError

_HOST = re.compile(
    r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?(:[0-9]{1,5})?|\[?[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]?"
)


def check_hosts(hosts: Iterable[str], *, field: str) -> None:
    """Refuse entries that are no hosts.

    Raises:
        InvalidArgumentError: Naming the first one.
    """
    for index, host in enumerate(hosts):
        if not _HOST.fullmatch(host) or len(host) > 255:
            message = f"{field}[{index}] {host[:80]!r} is no host; give api.example.com, *.example.com or host:8443"
            raise InvalidArgumentError(message, field=f"{field}[{index}]")


def host_matches(host: str, allowed: Iterable[str], *, port: int | None = None) -> bool:
    """Whether a list allows a host; an entry with a port allows that port alone, `*.` all names below."""
    name = host.lower().rstrip(".").strip("[]")
    for entry in allowed:
        wanted, colon, number = entry.lower().rpartition(":")
        if not colon or not number.isdigit() or ":" in wanted.strip("[]"):
            wanted, number = entry.lower(), ""
        wanted = wanted.rstrip(".").strip("[]")
        if number and port is not None and int(number) != port:
            continue
        if name == wanted or (wanted.startswith("*.") and name.endswith(wanted[1:])):
            return True
    return False
