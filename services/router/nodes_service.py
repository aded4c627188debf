"""The RPC edge of the registry of nodes."""

from llamastack import v1
from services.router.config import RouterConfig
from services.router.nodes import NodeTable
from services.runtime.pages import page
from services.runtime.stream import RpcContext
from stack_client.errors import InvalidArgumentError


class NodesService(v1.NodesServiceServicer):
    """`llamastack.v1.NodesService`."""

    def __init__(self, table: NodeTable, config: RouterConfig) -> None:
        self._table = table
        self._lease_seconds = config.lease_seconds

    async def RegisterNode(self, request: v1.RegisterNodeRequest, context: RpcContext) -> v1.RegisterNodeResponse:
        """Grant a lease."""
        node = self._table.register(request)
        return v1.RegisterNodeResponse(lease_id=node.lease_id, lease_seconds=self._lease_seconds)

    async def RenewLease(self, request: v1.RenewLeaseRequest, context: RpcContext) -> v1.RenewLeaseResponse:
        """Extend it."""
        self._table.renew(request.lease_id, request.report)
        return v1.RenewLeaseResponse(lease_seconds=self._lease_seconds)

    async def UnregisterNode(self, request: v1.UnregisterNodeRequest, context: RpcContext) -> v1.UnregisterNodeResponse:
        """End it."""
        if not request.lease_id:
            raise InvalidArgumentError("lease_id is empty", reason="MISSING_FIELD", field="lease_id")
        self._table.unregister(request.lease_id)
        return v1.UnregisterNodeResponse()

    async def DrainNode(self, request: v1.DrainNodeRequest, context: RpcContext) -> v1.DrainNodeResponse:
        """Send new work elsewhere, or back."""
        node = self._table.drain(request.node_id, undo=request.undo)
        return v1.DrainNodeResponse(node=self._table.message(node))

    async def ListNodes(self, request: v1.ListNodesRequest, context: RpcContext) -> v1.ListNodesResponse:
        """List by id."""
        nodes, token = page(self._table.nodes, key=lambda node: node.node_id, request=request)
        return v1.ListNodesResponse(data=[self._table.message(node) for node in nodes], next_page_token=token)
