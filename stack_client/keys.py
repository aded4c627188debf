"""`client.keys`: API keys of the gateway."""

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from llamastack import v1
from stack_client.calls import DEFAULT_TIMEOUT, every_page, unary
from stack_client.errors import InvalidArgumentError

USUAL_SCOPES = ("read", "inference", "agents", "memory", "tools", "safety", "files", "batches")
"""What a program needs that uses the stack and manages nothing."""

KeyList: TypeAlias = list[v1.ApiKey]


class ApiKeys:
    """Calls of `KeysService`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = v1.KeysServiceStub(channel)

    async def create(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        tenant: str = "",
        ttl: timedelta | None = None,
        expires_at: datetime | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        request_id: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.CreateKeyResponse:
        """Make a key; the answer has its secret, which is shown only here.

        Args:
            name: What people shall call it.
            scopes: What the bearer may do, for example `read`, `inference`, `admin`.
            tenant: For whom the bearer's work is done; empty means nobody in particular.
            ttl: How long it lives; at most ten years.
            expires_at: From when on it is refused, with a time zone; without it and `ttl` it lives for ever.
            requests_per_minute: Requests that the bearer may make; None means no limit.
            tokens_per_minute: Tokens of prompts and answers that the bearer may use; None means no limit.
            request_id: A repeat with the same one makes no second key, and answers no secret; empty means a fresh one.
            timeout: Seconds until the call gives up.

        Raises:
            InvalidArgumentError: If a value is wrong; names the field.
            PermissionDeniedError: If the caller comes for another tenant.
        """
        if ttl is not None and expires_at is not None:
            raise InvalidArgumentError("give ttl or expires_at, not both", field="expires_at")
        request = v1.CreateKeyRequest(
            name=name,
            tenant=tenant,
            scopes=scopes,
            requests_per_minute=_limit(requests_per_minute, field="requests_per_minute"),
            tokens_per_minute=_limit(tokens_per_minute, field="tokens_per_minute"),
            request_id=request_id or str(uuid.uuid4()),
        )
        if ttl is not None:
            length = Duration()
            length.FromTimedelta(ttl)
            request.ttl.CopyFrom(length)
        if expires_at is not None:
            request.expires_at.CopyFrom(_stamp(expires_at))
        response: v1.CreateKeyResponse = await unary(self._stub.CreateKey(request, timeout=timeout))
        return response

    async def list(
        self, tenant: str = "", *, include_revoked: bool = False, timeout: float = DEFAULT_TIMEOUT
    ) -> KeyList:
        """Keys, newest first, without their secrets.

        Args:
            tenant: Only those of this tenant; empty means all.
            include_revoked: Whether revoked ones are among them.
            timeout: Seconds until one call gives up.

        Raises:
            StackError: If the call fails.
        """
        request = v1.ListKeysRequest(tenant=tenant, include_revoked=include_revoked)
        return await every_page(self._stub.ListKeys, request, timeout=timeout)

    async def revoke(self, key: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.ApiKey:
        """End a key for good.

        Args:
            key: Its id or prefix.
            timeout: Seconds until the call gives up.

        Raises:
            NotFoundError: If there is none.
        """
        response: v1.RevokeKeyResponse = await unary(
            self._stub.RevokeKey(v1.RevokeKeyRequest(key_id=key), timeout=timeout)
        )
        return response.key


def _limit(value: int | None, *, field: str) -> int | None:
    if value is not None and not 1 <= value < 1 << 32:
        raise InvalidArgumentError(f"{field} is {value}; give 1 to {(1 << 32) - 1}, or leave it out", field=field)
    return value


def _stamp(moment: datetime) -> Timestamp:
    if moment.tzinfo is None:
        raise InvalidArgumentError(f"expires_at {moment.isoformat()} has no time zone; add one", field="expires_at")
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
