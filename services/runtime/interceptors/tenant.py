"""Learns for which tenant a call is made, from callers that may say so."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.runtime.calls import TENANT, Call
from services.runtime.interceptors.base import Around, Context, header
from services.runtime.names import check_tenant
from stack_client.errors import PermissionDeniedError


class Tenant(Around):
    """Takes the tenant from the caller's `x-tenant`; without it the call is nobody's in particular.

    Whoever may name a tenant can spend its share and tell what it has asked from how fast the answer begins. So the
    header is taken only from callers who are services of the mesh: over the unix sockets, whose folder is closed to
    other users; with a client's certificate; or from anybody on a network that was declared to be private.
    """

    def __init__(self, *, private_network: bool) -> None:
        self._private_network = private_network

    @asynccontextmanager
    async def around(self, call: Call, *, context: Context, streams: bool) -> AsyncIterator[None]:  # noqa: ARG002
        """Set the tenant.

        Raises:
            PermissionDeniedError: If this caller may not name one.
            InvalidArgumentError: If it is no plain short token.
        """
        tenant = header(context, name=TENANT)
        if tenant:
            if not self._trusted(context):
                raise PermissionDeniedError(
                    f"{TENANT} is taken over unix sockets and from callers with a certificate only; leave it out"
                )
            check_tenant(tenant, field=TENANT)
            call.tenant = tenant
        yield

    def _trusted(self, context: Context) -> bool:
        return self._private_network or context.peer().startswith("unix:") or bool(context.peer_identities())
