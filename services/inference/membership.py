"""Being a node of a router: register, renew the lease, say when draining, leave."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Self

import grpc

from llamastack import v1
from services.inference.config import RouterLink
from services.runtime.readiness import Readiness

logger = logging.getLogger(__name__)

CALL_SECONDS = 2.0
"""Deadline of each call to the router."""


class Membership:
    """Keeps this node known to its router while the block runs; a router that is away is tried again and again.

    Args:
        link: The router and our place.
        channel: To the router; closed at the end.
        readiness: Ours; every change of it is told at once.
        report: What we tell.
    """

    def __init__(
        self,
        link: RouterLink,
        *,
        channel: grpc.aio.Channel,
        readiness: Readiness,
        report: Callable[[], v1.NodeReport],
    ) -> None:
        self._link = link
        self._node_id = link.node_id or link.advertise
        self._channel = channel
        self._stub: Any = v1.NodesServiceStub(channel)
        self._readiness = readiness
        self._report = report
        self._lease_id = ""
        self._reachable = True
        self._tasks = asyncio.TaskGroup()
        self._telling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to tell the router; returns at once."""
        await self._tasks.__aenter__()
        self._telling = self._tasks.create_task(self._tell())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Leave the router."""
        if self._telling is not None:
            self._telling.cancel()
        await self._tasks.__aexit__(None, None, None)
        if self._lease_id:
            with contextlib.suppress(grpc.aio.AioRpcError):  # it will see the lease run out
                request = v1.UnregisterNodeRequest(lease_id=self._lease_id)
                await self._stub.UnregisterNode(request, timeout=CALL_SECONDS)
        await self._channel.close(None)

    async def _tell(self) -> None:
        while True:
            told = (self._readiness.state, self._readiness.reason)
            pause = await self._renew()
            if told != (self._readiness.state, self._readiness.reason):
                continue  # it changed while we told
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._readiness.next_change()

    async def _renew(self) -> float:
        """Register or renew; returns the seconds until the next time."""
        report = self._report()
        try:
            if self._lease_id:
                request = v1.RenewLeaseRequest(lease_id=self._lease_id, report=report)
                lease = await self._stub.RenewLease(request, timeout=CALL_SECONDS)
            else:
                place = v1.RegisterNodeRequest(node_id=self._node_id, address=self._link.advertise, report=report)
                lease = await self._stub.RegisterNode(place, timeout=CALL_SECONDS)
                self._lease_id = lease.lease_id
                logger.info("registered at the router address=%s node=%s", self._link.address, self._node_id)
        except grpc.aio.AioRpcError as error:
            if self._lease_id and error.code() is grpc.StatusCode.NOT_FOUND:  # it was restarted, or took us for lost
                self._lease_id = ""
                return 0.0
            if self._reachable:
                logger.warning("the router does not answer address=%s: %s", self._link.address, error.details())
            self._reachable = False
            return self._link.renew_seconds
        self._reachable = True
        return min(self._link.renew_seconds, float(lease.lease_seconds) / 3)
