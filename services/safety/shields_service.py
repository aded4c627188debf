"""The RPC edge of the shield registry."""

from llamastack import v1
from services.runtime.calls import current_tenant
from services.runtime.pages import page
from services.runtime.stream import RpcContext
from services.safety.policies import Policies
from services.safety.registry import ShieldRegistry


class ShieldsService(v1.ShieldsServiceServicer):
    """`llamastack.v1.ShieldsService`."""

    def __init__(self, registry: ShieldRegistry, policies: Policies) -> None:
        self._registry = registry
        self._policies = policies

    async def ListShields(self, request: v1.ListShieldsRequest, context: RpcContext) -> v1.ListShieldsResponse:
        """List by identifier."""
        shields, token = page(self._registry.shields(current_tenant()), key=lambda one: one.identifier, request=request)
        return v1.ListShieldsResponse(data=shields, next_page_token=token)

    async def GetShield(self, request: v1.GetShieldRequest, context: RpcContext) -> v1.GetShieldResponse:
        """Return one."""
        entry = self._registry.get(request.identifier, tenant=current_tenant(), field="identifier")
        return v1.GetShieldResponse(shield=entry.shield)

    async def RegisterShield(self, request: v1.RegisterShieldRequest, context: RpcContext) -> v1.RegisterShieldResponse:
        """Register."""
        return v1.RegisterShieldResponse(shield=await self._registry.register(request, tenant=current_tenant()))

    async def UnregisterShield(
        self, request: v1.UnregisterShieldRequest, context: RpcContext
    ) -> v1.UnregisterShieldResponse:
        """Remove."""
        await self._registry.unregister(request.identifier, tenant=current_tenant(), named=self._policies.named)
        return v1.UnregisterShieldResponse()
