"""The RPC edge of API keys."""

from llamastack import v1
from services.gateway.keys.draft import draft
from services.gateway.keys.form import START, make
from services.gateway.keys.store import Keys, Window
from services.runtime.calls import current_tenant
from services.runtime.moments import now
from services.runtime.names import check_tenant
from services.runtime.pages import decode_token, encode_token, page_size
from services.runtime.stream import RpcContext
from stack_client.errors import InvalidArgumentError, PermissionDeniedError

MAX_DIGITS = 18


class KeysService(v1.KeysServiceServicer):
    """Implements `llamastack.v1.KeysService`.

    Args:
        keys: The store.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def CreateKey(self, request: v1.CreateKeyRequest, context: RpcContext) -> v1.CreateKeyResponse:
        """Make one; the secret is in this answer only."""
        caller, secret = current_tenant(), make()
        key = draft(request, key_id=secret.key_id, caller=caller, moment=now())
        before = await self._keys.create(key, secret, request=request, caller=caller)
        if before is not None:
            return v1.CreateKeyResponse(key=before)
        return v1.CreateKeyResponse(key=key, secret=secret.text)

    async def ListKeys(self, request: v1.ListKeysRequest, context: RpcContext) -> v1.ListKeysResponse:
        """List, newest first."""
        caller, size = current_tenant(), page_size(request)
        if request.tenant:
            check_tenant(request.tenant, field="tenant")
        if caller and request.tenant not in {"", caller}:
            message = f"tenant is {request.tenant!r}, but you come for {caller!r}; leave it out"
            raise PermissionDeniedError(message, field="tenant")
        tenant = request.tenant or caller
        scope = f"ListKeys\0{tenant}\0{request.include_revoked}"
        before = _number(decode_token(request.page_token, scope=scope))
        window = Window(tenant=tenant, revoked=request.include_revoked, before=before, count=size + 1)
        found = await self._keys.list(window)
        token = encode_token(str(found[size - 1][0]), scope=scope) if len(found) > size else ""
        return v1.ListKeysResponse(data=[key for _, key in found[:size]], next_page_token=token)

    async def RevokeKey(self, request: v1.RevokeKeyRequest, context: RpcContext) -> v1.RevokeKeyResponse:
        """End one."""
        key_id = request.key_id.removeprefix(START)
        if not key_id:
            message = "key_id is empty; `stack keys list` shows the ids"
            raise InvalidArgumentError(message, reason="MISSING_FIELD", field="key_id")
        if "_" in key_id:  # such a text would be in the error otherwise
            raise InvalidArgumentError("key_id is a secret or no id; give the part before its last `_`", field="key_id")
        return v1.RevokeKeyResponse(key=await self._keys.revoke(key_id, tenant=current_tenant()))


def _number(position: str) -> int:
    """Anybody can make a token, of any position."""
    if position and not (position.isdecimal() and len(position) <= MAX_DIGITS):
        message = "page_token is damaged; begin again without one"
        raise InvalidArgumentError(message, reason="INVALID_PAGE_TOKEN", field="page_token")
    return int(position or 0)
