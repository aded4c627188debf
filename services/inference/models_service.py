"""The RPC edge of the model registry."""

import asyncio

from llamastack import v1
from services.inference.registry import ModelRegistry
from services.runtime.pages import page
from services.runtime.stream import RpcContext


class ModelsService(v1.ModelsServiceServicer):
    """`llamastack.v1.ModelsService`."""

    def __init__(self, registry: ModelRegistry, *, tasks: asyncio.TaskGroup) -> None:
        self._registry = registry
        self._tasks = tasks

    async def ListModels(self, request: v1.ListModelsRequest, context: RpcContext) -> v1.ListModelsResponse:
        """List by identifier."""
        models, token = page(self._registry.models, key=lambda model: model.identifier, request=request)
        return v1.ListModelsResponse(data=models, next_page_token=token)

    async def GetModel(self, request: v1.GetModelRequest, context: RpcContext) -> v1.GetModelResponse:
        """Return one."""
        return v1.GetModelResponse(model=self._registry.get(request.model_id))

    async def RegisterModel(self, request: v1.RegisterModelRequest, context: RpcContext) -> v1.RegisterModelResponse:
        """Register and begin to load."""
        return v1.RegisterModelResponse(model=await self._registry.register(request, self._tasks))

    async def UnregisterModel(
        self, request: v1.UnregisterModelRequest, context: RpcContext
    ) -> v1.UnregisterModelResponse:
        """Remove and free."""
        await self._registry.unregister(request.model_id)
        return v1.UnregisterModelResponse()
