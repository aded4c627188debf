"""Connections to places that callers name, without becoming their way into our network (server-side request forgery).

A name is resolved once, and the connection goes to the address that was checked; TLS and the Host header keep the name.
Redirects are not followed here: each is a connection of its own. Proxies of the environment are not used.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import httpcore

from stack_client.errors import InvalidArgumentError, PermissionDeniedError, UnavailableError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Addresses of a host."""


async def system_resolve(host: str, port: int) -> Sequence[str]:
    """Addresses as the system knows them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class Egress:
    """Where connections may go: to public addresses, and to what the operator allows beside them.

    Args:
        allow: Hosts (`docs.internal`) and networks (`10.1.0.0/16`) that may be reached although they are not public.
        setting: Name of that list in the configuration, for errors.
        resolve: Finds addresses of hosts.

    Raises:
        InvalidArgumentError: If an entry of the list is neither.
    """

    def __init__(self, allow: Sequence[str] = (), *, setting: str, resolve: Resolve = system_resolve) -> None:
        self._hosts, self._networks = read_allowed(allow, setting=setting)
        self._setting = setting
        self._resolve = resolve

    def is_allowed(self, host: str) -> bool:
        """Whether the operator named a host, or the network of an address."""
        if host.lower().rstrip(".") in self._hosts:
            return True
        try:
            address = ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            return False
        return any(one in network for one in forms(address) for network in self._networks)

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """Where a host may be reached.

        Raises:
            PermissionDeniedError: If one of its addresses is not public and not allowed.
            UnavailableError: If it has none.
        """
        try:
            found = list(dict.fromkeys(await self._resolve(host, port)))
        except (OSError, UnicodeError) as error:
            raise UnavailableError(f"{host}: no address is known ({error})") from error
        if not found:
            raise UnavailableError(f"{host}: no address is known")
        if host.lower().rstrip(".") in self._hosts:
            return found
        for text in found:
            address = ipaddress.ip_address(text.partition("%")[0])
            if not is_public(address) and not any(
                one in network for one in forms(address) for network in self._networks
            ):
                message = (
                    f"{host} is at {text}, which is not public: refused; the operator can name it in {self._setting}"
                )
                raise PermissionDeniedError(message)
        return found


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, and to nothing else."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore's interface)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, check, connect to the first address that answers."""
        addresses = await self._egress.addresses(host, port)
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ARG002, ASYNC109 (httpcore's interface)
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        """Refuse: nothing on this machine is fetched."""
        raise PermissionDeniedError(f"unix sockets are not fetched: {path}")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._inner.sleep(seconds)


def read_allowed(allow: Sequence[str], *, setting: str) -> tuple[frozenset[str], tuple[Network, ...]]:
    """Hosts and networks of a list.

    Args:
        allow: The list.
        setting: Its name in the configuration, for errors.

    Raises:
        InvalidArgumentError: If an entry is neither.
    """
    hosts, networks = set(), []
    for entry in allow:
        try:
            networks.append(ipaddress.ip_network(entry))
        except ValueError as error:
            if "/" in entry or not entry.strip() or ":" in entry:
                message = f"{setting}: {entry!r} is neither a host nor a network such as 10.1.0.0/16"
                raise InvalidArgumentError(message) from error
            hosts.add(entry.lower().rstrip("."))
    return frozenset(hosts), tuple(networks)


def is_public(address: Address) -> bool:
    """Whether an address is a place on the public internet, also what it holds inside (RFC 6052, 4291, 3056, 4380)."""
    inner = forms(address)
    return all(_is_global(one) for one in inner[1:] or inner)


def _is_global(address: Address) -> bool:
    odd = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    # Python calls site-local addresses (RFC 3879) and relays of 6to4 (RFC 7526), both withdrawn, global.
    odd = odd or (address.version == 6 and address.is_site_local) or address in _RELAYS
    return address.is_global and not odd


def forms(address: Address) -> list[Address]:
    """An address, and the IPv4 address that it stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    number = int(address)
    for network, shift in _EMBEDDED:
        if address in network:
            inner = (number >> shift) & 0xFFFF_FFFF
            return [address, ipaddress.IPv4Address(inner ^ 0xFFFF_FFFF if network == _TEREDO else inner)]
    if address in _LOCAL_NAT64:
        return [address, ipaddress.IPv4Address(0)]  # where it leads only its gateway knows
    return [address]


_TEREDO = ipaddress.IPv6Network("2001::/32")
_RELAYS = ipaddress.IPv4Network("192.88.99.0/24")
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_EMBEDDED = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),
    (ipaddress.IPv6Network("::ffff:0:0:0/96"), 0),
    (ipaddress.IPv6Network("::/96"), 0),
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),
    (ipaddress.IPv6Network("2002::/16"), 80),
    (_TEREDO, 0),
)
