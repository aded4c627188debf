"""The RPC edge of the models behind the router: what the nodes serve together."""

from collections.abc import Sequence

import grpc

from llamastack import v1
from services.router.nodes import NodeTable, RoutedNode
from services.runtime.pages import page
from services.runtime.stream import RpcContext
from stack_client.errors import StackError, from_rpc_error


class ModelsService(v1.ModelsServiceServicer):
    """`llamastack.v1.ModelsService`: lists are merged, registering and unregistering go to every living node."""

    def __init__(self, table: NodeTable) -> None:
        self._table = table

    async def ListModels(self, request: v1.ListModelsRequest, context: RpcContext) -> v1.ListModelsResponse:
        """List by identifier; a model on several nodes is listed once."""
        models, token = page(list(self._table.models.values()), key=lambda model: model.identifier, request=request)
        return v1.ListModelsResponse(data=models, next_page_token=token)

    async def GetModel(self, request: v1.GetModelRequest, context: RpcContext) -> v1.GetModelResponse:
        """Return one, as the node has it that is furthest with it."""
        model = self._table.models.get(request.model_id)
        if model is None:
            raise self._table.unknown(request.model_id)
        return v1.GetModelResponse(model=model)

    async def RegisterModel(self, request: v1.RegisterModelRequest, context: RpcContext) -> v1.RegisterModelResponse:
        """Register on every living node; nodes that have it already say so, hence a repeat after a failure is safe."""
        registered = v1.RegisterModelResponse()
        for node in self._alive():
            try:
                registered = await node.models_stub.RegisterModel(request)
            except grpc.aio.AioRpcError as error:
                raise _at(node, from_rpc_error(error)) from None
            node.models[request.model_id] = registered.model
        return registered

    async def UnregisterModel(
        self, request: v1.UnregisterModelRequest, context: RpcContext
    ) -> v1.UnregisterModelResponse:
        """Unregister on every living node that has it."""
        nodes = [node for node in self._alive() if request.model_id in node.models]
        if not nodes:
            raise self._table.unknown(request.model_id)
        for node in nodes:
            try:
                await node.models_stub.UnregisterModel(request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:  # gone there already is gone
                    raise _at(node, from_rpc_error(error)) from None
            node.models.pop(request.model_id, None)
        return v1.UnregisterModelResponse()

    def _alive(self) -> Sequence[RoutedNode]:
        if not self._table.alive:
            raise self._table.nobody()
        return self._table.alive


def _at(node: RoutedNode, error: StackError) -> StackError:
    """The error with the node's name; nodes before it in the list have done it."""
    error.message = f"node {node.node_id}: {error.message}"
    return error
