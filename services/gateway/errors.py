"""Errors as all client families read them: one body for OpenAI's, Llama Stack's and OGX's SDKs."""

from collections.abc import Mapping
from typing import Any

from stack_client.errors import ResourceExhaustedError, StackError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}


def status_of(error: StackError) -> int:
    """The HTTP status of an error: that of its class, with size and overload told apart from quota."""
    if isinstance(error, ResourceExhaustedError):
        return {"MESSAGE_TOO_LARGE": 413, "OVERLOADED": 503}.get(error.reason, error.http_status)
    if error.http_status == 501 and error.field:
        return 400  # a field that cannot be honoured is a bad request, and no SDK retries it
    return error.http_status


def error_body(error: StackError, *, status: int) -> dict[str, Any]:
    """The body: `error` for all newer clients, `detail` for those of 0.2."""
    return {"error": error_object(error, status=status), "detail": error.message}


def error_object(error: StackError, *, status: int) -> dict[str, Any]:
    """What stands under `error`, in bodies and as the last event of a broken stream."""
    return {
        "message": error.message,
        "type": _TYPES.get(status, "server_error"),
        "code": error.reason.lower(),
        "param": error.field or None,
    }


def error_headers(error: StackError, *, status: int) -> Mapping[str, str]:
    """Headers that steer the retries of the SDKs, which try again after 408, 409, 429 and every 5xx."""
    headers = {}
    if status in {409, 501}:
        headers["x-should-retry"] = "false"
    if status in {429, 503}:
        wait = error.retry_after if error.retry_after is not None else 1.0
        headers["retry-after"] = str(max(1, round(wait)))
        headers["retry-after-ms"] = str(max(1, round(wait * 1000)))
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="llama-stack"'
    return headers
