"""Learns for which tenant a call is made, and with whose keys for providers, from callers that may say so."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.runtime.calls import PROVIDER_DATA, TENANT, Call
from services.runtime.interceptors.base import Around, Context, header
from services.runtime.names import check_tenant
from stack_client.errors import InvalidArgumentError, PermissionDeniedError

MOST_PROVIDER_DATA = 4096
"""Bytes of a caller's keys for providers, which are sent with every call."""


class Tenant(Around):
    """Takes the tenant from the caller's `x-tenant`; without it the call is nobody's in particular.

    Likewise it takes the keys of providers that the tenant's own caller brings, from `x-provider-data`.

    Whoever may name a tenant can spend its share and tell what it has asked from how fast the answer begins. So the
    header is taken only from callers who are services of the mesh: over the unix sockets, whose folder is closed to
    other users; with a client's certificate; or from anybody on a network that was declared to be private.
    """

    def __init__(self, *, private_network: bool) -> None:
        self._private_network = private_network

    @asynccontextmanager
    async def around(self, call: Call, *, context: Context, streams: bool) -> AsyncIterator[None]:  # noqa: ARG002
        """Set the tenant and the keys.

        Raises:
            PermissionDeniedError: If this caller may not name them.
            InvalidArgumentError: If the tenant is no plain short token, or the keys are too long.
        """
        tenant = header(context, name=TENANT)
        if tenant:
            if not self._trusted(context):
                raise PermissionDeniedError(
                    f"{TENANT} is taken over unix sockets and from callers with a certificate only; leave it out"
                )
            check_tenant(tenant, field=TENANT)
            call.tenant = tenant
        given = header(context, name=PROVIDER_DATA)
        if given:
            self._check_provider_data(given, context)
            call.provider_data = given
        yield

    def _check_provider_data(self, given: str, context: Context) -> None:
        if not self._trusted(context):
            raise PermissionDeniedError(
                f"{PROVIDER_DATA} is taken over unix sockets and from callers with a certificate only; leave it out"
            )
        if len(given) > MOST_PROVIDER_DATA:
            message = f"{PROVIDER_DATA} has {len(given)} characters; at most {MOST_PROVIDER_DATA} are allowed"
            raise InvalidArgumentError(message, field=PROVIDER_DATA)

    def _trusted(self, context: Context) -> bool:
        return self._private_network or context.peer().startswith("unix:") or bool(context.peer_identities())
