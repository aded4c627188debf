"""A request as the key that it asks for."""

from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from llamastack import v1
from services.gateway.keys.form import prefix_of
from services.gateway.principal import SCOPES
from services.runtime.moments import SECOND, moment_of, stamp
from services.runtime.names import check_printable, check_tenant
from stack_client.errors import InvalidArgumentError, PermissionDeniedError

MAX_NAME = 128
MAX_REQUEST_ID = 128
LONGEST = timedelta(days=3653)


def draft(request: v1.CreateKeyRequest, *, key_id: str, caller: str, moment: int) -> v1.ApiKey:
    """The key that a request asks for.

    Args:
        request: It.
        key_id: Of the key.
        caller: The tenant for whom the caller comes; empty is an operator.
        moment: Now, in microseconds since 1970.

    Raises:
        InvalidArgumentError: If a field is wrong; names it.
        PermissionDeniedError: If the key would be another tenant's, or reach beyond the caller's.
    """
    _check_text(request)
    for name in ("requests_per_minute", "tokens_per_minute"):
        if request.HasField(name) and not getattr(request, name):
            raise InvalidArgumentError(f"{name} is 0; give at least 1, or leave it out for no limit", field=name)
    return v1.ApiKey(
        id=key_id,
        name=request.name,
        prefix=prefix_of(key_id),
        tenant=_tenant(request.tenant, caller=caller),
        scopes=_scopes(request, caller=caller),
        created_at=stamp(moment),
        expires_at=stamp(_expiry(request, moment=moment)),
        requests_per_minute=request.requests_per_minute if request.HasField("requests_per_minute") else None,
        tokens_per_minute=request.tokens_per_minute if request.HasField("tokens_per_minute") else None,
    )


def _check_text(request: v1.CreateKeyRequest) -> None:
    if not request.name.strip():
        message = "name is empty; say what the key is for, so that it is known in the list"
        raise InvalidArgumentError(message, reason="MISSING_FIELD", field="name")
    check_printable(request.name, most=MAX_NAME, field="name")
    check_printable(request.request_id, most=MAX_REQUEST_ID, field="request_id")


def _tenant(given: str, *, caller: str) -> str:
    if given:
        check_tenant(given, field="tenant")
    if caller and given not in {"", caller}:
        message = f"tenant is {given!r}, but you come for {caller!r}; make keys for yourself, or ask an operator"
        raise PermissionDeniedError(message, field="tenant")
    return given or caller


def _scopes(request: v1.CreateKeyRequest, *, caller: str) -> list[str]:
    known = ", ".join(SCOPES)
    if not request.scopes:
        message = f"scopes is empty; name what the bearer may do, of: {known}"
        raise InvalidArgumentError(message, reason="MISSING_FIELD", field="scopes")
    for index, scope in enumerate(request.scopes):
        if scope not in SCOPES:
            raise InvalidArgumentError(f"no scope {scope[:64]!r}; there are: {known}", field=f"scopes[{index}]")
    if caller and "admin" in request.scopes:
        message = f"you come for {caller!r}, but `admin` reaches what all tenants share; ask an operator for such a key"
        raise PermissionDeniedError(message, field="scopes")
    return [scope for scope in SCOPES if scope in request.scopes]


def _expiry(request: v1.CreateKeyRequest, *, moment: int) -> int | None:
    match request.WhichOneof("expiry"):
        case "expires_at":
            end = moment_of(request.expires_at, field="expires_at")
            if end <= moment:
                raise InvalidArgumentError("expires_at is over; give a moment in the future", field="expires_at")
            return end
        case "ttl":
            return moment + _microseconds(request.ttl)
        case _:
            return None


def _microseconds(ttl: Duration) -> int:
    length = ttl.seconds * SECOND + ttl.nanos // 1000
    if not (0 < length <= LONGEST / timedelta(microseconds=1)) or not 0 <= ttl.nanos < 1_000_000_000:
        raise InvalidArgumentError("ttl is out of range; give more than 0 and at most ten years", field="ttl")
    return length
