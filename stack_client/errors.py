"""The one error tree of the mesh.

    StackError
    ├── InvalidArgumentError      INVALID_ARGUMENT     400   a value in the request is wrong
    │   └── UnsupportedError      UNIMPLEMENTED        501   the provider cannot do what a field asks for
    ├── OutOfRangeError           OUT_OF_RANGE         400   a resume point is too old, a page is past the end
    ├── AuthenticationError       UNAUTHENTICATED      401
    ├── PermissionDeniedError     PERMISSION_DENIED    403
    ├── NotFoundError             NOT_FOUND            404
    ├── AlreadyExistsError        ALREADY_EXISTS       409   the id exists with other content
    ├── ConflictError             ABORTED              409   an etag or version does not match
    ├── FailedPreconditionError   FAILED_PRECONDITION  409   the resource is in the wrong state
    ├── ResourceExhaustedError    RESOURCE_EXHAUSTED   429   overload or quota; carries retry_after
    ├── CancelledError            CANCELLED            499
    ├── DeadlineExceededError     DEADLINE_EXCEEDED    504
    ├── UnavailableError          UNAVAILABLE          503
    │   └── StreamBrokenError     UNAVAILABLE          503   a stream ended without its terminal event
    └── InternalError             INTERNAL             500
        └── DataLossError         DATA_LOSS            500

Services raise these; an interceptor carries them as canonical status plus `google.rpc.ErrorInfo`; the client raises
them again with the same type, reason and metadata. `reason` is one of the names in `llamastack/v1/errors.proto`.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from llamastack import v1

DOMAIN = "llamastack.mesh"
DETAILS_KEY = "grpc-status-details-bin"
# Trailers over 8 KiB are refused at random and the caller would see RESOURCE_EXHAUSTED instead of the real error.
MAX_MESSAGE_CHARS = 2000


class StackError(Exception):
    """Anything that goes wrong between a caller and the mesh.

    Attributes:
        message: What went wrong, naming the thing, and what to do.
        reason: Machine-readable name, UPPER_SNAKE, from `llamastack/v1/errors.proto`.
        metadata: Further facts, for example `{"model": "llama-9b"}`.
        field: Path of the request field at fault, or "".
        retry_after: Seconds after which a retry may succeed, or None.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    http_status: ClassVar[int] = 500
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        field: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        self.field = field
        self.retry_after = retry_after


class InvalidArgumentError(StackError):
    """A value in the request is wrong; `field` names it."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400
    default_reason = "INVALID_VALUE"


class UnsupportedError(InvalidArgumentError):
    """The chosen provider cannot do what a field asks for; `field` names it."""

    code = grpc.StatusCode.UNIMPLEMENTED
    http_status = 501
    default_reason = "UNSUPPORTED"


class OutOfRangeError(StackError):
    """A resume point is too old or a position lies past the end."""

    code = grpc.StatusCode.OUT_OF_RANGE
    http_status = 400
    default_reason = "RESUME_POINT_GONE"


class AuthenticationError(StackError):
    """No credential, or one that is not valid."""

    code = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401
    default_reason = "UNAUTHENTICATED"


class PermissionDeniedError(StackError):
    """The credential lacks the right."""

    code = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403
    default_reason = "PERMISSION_DENIED"


class NotFoundError(StackError):
    """No resource of that id."""

    code = grpc.StatusCode.NOT_FOUND
    http_status = 404
    default_reason = "NOT_FOUND"


class AlreadyExistsError(StackError):
    """The id exists already, with other content."""

    code = grpc.StatusCode.ALREADY_EXISTS
    http_status = 409
    default_reason = "ALREADY_EXISTS"


class ConflictError(StackError):
    """Somebody else changed the resource in between."""

    code = grpc.StatusCode.ABORTED
    http_status = 409
    default_reason = "CONFLICT"


class FailedPreconditionError(StackError):
    """The resource is not in a state that allows this."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 409
    default_reason = "FAILED_PRECONDITION"


class ResourceExhaustedError(StackError):
    """Overload, quota or size; `retry_after` says when to come back."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    default_reason = "OVERLOADED"


class CancelledError(StackError):
    """The call was cancelled by its caller or by the server's shutdown."""

    code = grpc.StatusCode.CANCELLED
    http_status = 499
    default_reason = "CANCELLED"


class DeadlineExceededError(StackError):
    """The call's deadline passed first."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504
    default_reason = "DEADLINE_EXCEEDED"


class UnavailableError(StackError):
    """The service, or something it depends on, cannot be reached now."""

    code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    default_reason = "UNAVAILABLE"


class StreamBrokenError(UnavailableError):
    """A stream ended without its terminal event: what arrived so far is incomplete."""

    default_reason = "STREAM_BROKEN"


class InternalError(StackError):
    """A bug or a fault inside the mesh."""

    code = grpc.StatusCode.INTERNAL
    default_reason = "INTERNAL"


class DataLossError(InternalError):
    """Stored data is damaged."""

    code = grpc.StatusCode.DATA_LOSS
    default_reason = "DATA_LOSS"


# The general class of each status; the more special ones are chosen by reason.
_BY_CODE: dict[grpc.StatusCode, type[StackError]] = {
    error.code: error
    for error in (
        InvalidArgumentError, UnsupportedError, OutOfRangeError, AuthenticationError, PermissionDeniedError,
        NotFoundError, AlreadyExistsError, ConflictError, FailedPreconditionError, ResourceExhaustedError,
        CancelledError, DeadlineExceededError, UnavailableError, InternalError, DataLossError,
    )
}  # fmt: skip
_BY_REASON: dict[str, type[StackError]] = {StreamBrokenError.default_reason: StreamBrokenError}
NOTHING_ANSWERS = "nothing answers"
_BROKEN_OFF = ("Stream removed", "Socket closed", "Received RST_STREAM")
_NO_CONNECTION = ("failed to connect", "errors resolving", "DNS resolution failed")  # the transport's words
_CODE_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


def to_status(error: StackError) -> status_pb2.Status:
    """Pack `error` as `google.rpc.Status` with exactly one ErrorInfo, and BadRequest or RetryInfo where they apply."""
    message = error.message[:MAX_MESSAGE_CHARS]
    status = status_pb2.Status(code=error.code.value[0], message=message)
    metadata = {key[:64]: value[:256] for key, value in list(error.metadata.items())[:16]}
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=message[:200])
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def from_status(status: status_pb2.Status) -> StackError:
    """Unpack what `to_status` packed; the class follows from reason and code."""
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    retry_after = None
    for detail in status.details:
        if detail.Unpack(info) or detail.Unpack(bad_request):
            continue
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return _build(
        _CODE_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN),
        status.message,
        reason=info.reason,
        metadata=info.metadata,
        field=bad_request.field_violations[0].field if bad_request.field_violations else "",
        retry_after=retry_after,
    )


def from_rpc_error(error: grpc.aio.AioRpcError) -> StackError:
    """The error of a failed call, whether it comes from a service (with details) or from the transport (without)."""
    # Plain pairs at run time, whatever the type stubs call them.
    for key, value in cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ()):
        if key == DETAILS_KEY and isinstance(value, bytes):
            return from_status(status_pb2.Status.FromString(value))
    code = error.code()
    details = error.details() or ""
    if code is grpc.StatusCode.INTERNAL and "RST_STREAM" in details:
        # A worker that died in the middle of a stream: the transport calls it INTERNAL, for the caller it is absence.
        code = grpc.StatusCode.UNAVAILABLE
    # The transport's own size limits, of either end, say so in words only.
    too_large = code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in details
    reason = "MESSAGE_TOO_LARGE" if too_large else ""
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith(_NO_CONNECTION):
        details = f"{NOTHING_ANSWERS}: {details}; is the stack running? (`stack status`, `stack up`)"
    elif code is grpc.StatusCode.UNAVAILABLE and details.startswith(_BROKEN_OFF):
        details = f"the service ended in the middle of the call ({details}); call again, or see `stack status`"
    return _build(code, details or f"the call failed with {code.name}", reason=reason)


def from_error_message(error: v1.Error) -> StackError:
    """The error that a failed turn, job or item keeps."""
    reason = v1.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_") if error.reason else ""
    code = _CODE_BY_NUMBER.get(error.code, grpc.StatusCode.UNKNOWN)
    return _build(code, error.message, reason=reason, metadata=error.metadata)


def to_error_message(error: StackError) -> v1.Error:
    """The error as it is kept with a turn, job or item."""
    number = v1.ErrorReason.DESCRIPTOR.values_by_name.get(f"ERROR_REASON_{error.reason}")
    return v1.Error(
        reason=v1.ErrorReason.Value(number.name) if number else v1.ERROR_REASON_UNSPECIFIED,
        message=error.message,
        code=error.code.value[0],
        metadata=error.metadata,
    )


def _build(
    code: grpc.StatusCode,
    message: str,
    *,
    reason: str = "",
    metadata: Mapping[str, str] | None = None,
    field: str = "",
    retry_after: float | None = None,
) -> StackError:
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, InternalError)
    return kind(message, reason=reason, metadata=metadata, field=field, retry_after=retry_after)
