"""`grpc.health.v1`, straight from the readiness of the service.

The servicer that comes with grpcio is told states from outside and leaves its watchers hanging when the server stops;
ours reads `Readiness` and ends each Watch once the service drains, so a drain never waits for watchers.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.interceptors.base import Context
from services.runtime.readiness import Readiness

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):
    """Answers for every gRPC service of a server and for "", the whole."""

    def __init__(self, *, readiness: Readiness, names: Sequence[str]) -> None:
        self._readiness = readiness
        self._names = frozenset((*names, ""))

    async def Check(  # noqa: N802 - named by the proto
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """The state now; NOT_FOUND for a service that is not hosted here."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f'no service "{request.service}" on this server')
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802 - named by the proto
        self,
        request: health_pb2.HealthCheckRequest,
        context: Context,  # noqa: ARG002 - given by grpc
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The state now and whenever it changes; ends after NOT_SERVING when the service drains."""
        last = None
        while True:
            status, drains = self._status(request.service), self._readiness.state == "draining"
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
                last = status
                continue  # the state may have changed while this was sent
            if drains:
                return
            await self._readiness.next_change()

    def _status(self, name: str) -> Any:  # noqa: ANN401 - an enum value, whose type the stubs do not name
        if name not in self._names:
            return _UNKNOWN
        return _SERVING if self._readiness.is_ready else _NOT_SERVING
