"""`InspectService`, which every service hosts."""

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from google.protobuf import descriptor_pool
from google.protobuf.timestamp_pb2 import Timestamp

from llamastack import v1
from services.runtime.interceptors import Drain
from services.runtime.interceptors.base import Context
from services.runtime.pages import page
from services.runtime.readiness import Readiness
from stack_client.version import version

NAME = "llamastack.v1.InspectService"
_STATES = {
    "starting": v1.SERVICE_STATE_STARTING,
    "ready": v1.SERVICE_STATE_READY,
    "failed": v1.SERVICE_STATE_FAILED,
    "draining": v1.SERVICE_STATE_DRAINING,
}


class Inspect(v1.InspectServiceServicer):
    """Tells what a service is and how it is doing."""

    def __init__(self, *, readiness: Readiness, calls: Drain, names: Sequence[str], addresses: Sequence[str]) -> None:
        self._readiness = readiness
        self._calls = calls
        self._names = list(names)
        self._addresses = addresses
        self._started = Timestamp()
        self._started.FromDatetime(datetime.now(tz=UTC))

    async def GetHealth(  # noqa: N802 - named by the proto
        self,
        request: v1.GetHealthRequest,  # noqa: ARG002 - empty
        context: Context,  # noqa: ARG002 - given by grpc
    ) -> v1.GetHealthResponse:
        """OK when ready, else Error."""
        ready = self._readiness.is_ready
        return v1.GetHealthResponse(status=v1.HEALTH_STATUS_OK if ready else v1.HEALTH_STATUS_ERROR)

    async def GetVersion(  # noqa: N802 - named by the proto
        self,
        request: v1.GetVersionRequest,  # noqa: ARG002 - empty
        context: Context,  # noqa: ARG002 - given by grpc
    ) -> v1.GetVersionResponse:
        """The version of the distribution."""
        return v1.GetVersionResponse(version=version())

    async def GetStatus(  # noqa: N802 - named by the proto
        self,
        request: v1.GetStatusRequest,  # noqa: ARG002 - empty
        context: Context,  # noqa: ARG002 - given by grpc
    ) -> v1.GetStatusResponse:
        """Everything `stack status` shows."""
        return v1.GetStatusResponse(
            service=self._readiness.name,
            version=version(),
            state=_STATES[self._readiness.state],
            waiting_for=self._readiness.reason,
            started_at=self._started,
            addresses=self._addresses,
            pid=os.getpid(),
            details=self._readiness.details,
            grpc_services=self._names,
            calls_in_flight=self._calls.in_flight,
        )

    async def ListRoutes(  # noqa: N802 - named by the proto
        self,
        request: v1.ListRoutesRequest,
        context: Context,  # noqa: ARG002 - given by grpc
    ) -> v1.ListRoutesResponse:
        """The methods of all hosted services."""
        routes = sorted((route for name in self._names for route in _routes(name)), key=lambda route: route.route)
        data, token = page(routes, key=lambda route: route.route, request=request)
        return v1.ListRoutesResponse(data=data, next_page_token=token)


def _routes(name: str) -> Iterator[v1.RouteInfo]:
    try:
        service = descriptor_pool.Default().FindServiceByName(name)
    except KeyError:  # added by a generic handler, without a proto
        return
    for method in service.methods:
        yield v1.RouteInfo(
            route=f"/{name}/{method.name}",
            client_streaming=method.client_streaming,
            server_streaming=method.server_streaming,
        )
