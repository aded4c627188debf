"""Where the MCP client may connect: public addresses, and what the operator names in `tools.egress_allow`."""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence

from services.tools.mcp.endpoint import Addresses
from stack_client.errors import PermissionDeniedError, UnavailableError


def checked_addresses(allow: Sequence[str]) -> Addresses:
    """A function that resolves a host once and answers only what may be reached.

    Args:
        allow: Hosts (`mcp.internal`) and networks (`10.1.0.0/16`) that may be reached although they are not public.
    """
    hosts, networks = set(), []
    for entry in allow:
        try:
            networks.append(ipaddress.ip_network(entry))
        except ValueError:
            hosts.add(entry.lower().rstrip("."))

    async def addresses(host: str, port: int) -> Sequence[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise UnavailableError(f"{host}: no address is known ({error})") from error
        texts = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if host.lower().rstrip(".") in hosts:
            return texts
        for text in texts:
            address = ipaddress.ip_address(text.partition("%")[0])
            if not address.is_global and not any(address in network for network in networks):
                message = (
                    f"{host} is at {text}, which is not public: refused; the operator can name it in tools.egress_allow"
                )
                raise PermissionDeniedError(message)
        return texts

    return addresses
