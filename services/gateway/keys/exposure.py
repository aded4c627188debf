"""Who can reach the gateway, and whether it may be open to them."""

import ipaddress
from urllib.parse import urlsplit

from services.runtime.config import ConfigError

_LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own; names are not looked up."""
    host = host.strip("[]").lower()
    if host in _LOCAL_NAMES:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def check_exposure(host: str, *, keys_required: bool, allow_open: bool) -> None:
    """Refuse to serve everybody by mistake.

    Args:
        host: Address that is listened on.
        keys_required: Whether every request needs a key or a token.
        allow_open: Whether the operator wants it open.

    Raises:
        ConfigError: If other machines could use the stack without a key, and nobody said that they may.
    """
    if keys_required or allow_open or is_loopback(host):
        return
    raise ConfigError(
        f'gateway.http_host: "{host}" is reachable from other machines, and gateway.auth.required is false: keys, '
        "listen on 127.0.0.1, or set gateway.auth.allow_open where everybody on the network may do everything"
    )


def check_web_address(address: str, *, name: str) -> None:
    """Refuse an address whose answer somebody on the way could change.

    Args:
        address: A URL.
        name: Of the setting, for errors.

    Raises:
        ValueError: If it is neither https nor on this machine.
    """
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
    except ValueError as error:
        raise ValueError(f"{name}: is no URL: {error}") from error
    if parts.username or parts.password:
        raise ValueError(f"{name}: has a user's name or password; keys are public, leave it out")
    if host and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))):
        return
    raise ValueError(f"{name}: give an https URL (http only on this machine), or save the keys and give jwks_file")
