"""Carries errors to the caller as canonical status plus `google.rpc.ErrorInfo`."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from services.runtime.calls import REQUEST_ID, Call
from services.runtime.interceptors.base import Around, Context
from stack_client.errors import DETAILS_KEY, InternalError, StackError, from_rpc_error, to_status

_log = logging.getLogger(__name__)


class Errors(Around):
    """Turns exceptions into status.

    A StackError keeps its code, reason and message. The failure of a call to another service is passed on as what it
    was. Everything else is INTERNAL: the caller gets the request id, the log gets the stack trace.
    """

    @asynccontextmanager
    async def around(self, call: Call, *, context: Context, streams: bool) -> AsyncIterator[None]:  # noqa: ARG002
        """Abort the call with what the handler raised."""
        try:
            yield
        except asyncio.CancelledError:
            call.code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:  # the handler spoke to grpc itself, as the health service does
            code = context.code()
            call.code = _BY_NUMBER.get(code, grpc.StatusCode.UNKNOWN) if isinstance(code, int) else code
            raise
        except StackError as error:
            await _abort(call, context=context, error=error)
        except grpc.aio.AioRpcError as error:
            await _abort(call, context=context, error=from_rpc_error(error))
        except Exception:  # noqa: BLE001 - the top of a call: whatever a handler raises must reach the caller as a status
            _log.exception("call failed with an unexpected error", extra={"rpc.method": call.method})
            message = f"internal error in {call.method}; the service's log has it under request id {call.request_id}"
            await _abort(call, context=context, error=InternalError(message))


async def _abort(call: Call, *, context: Context, error: StackError) -> None:
    call.code, call.reason = error.code, error.reason
    status = to_status(error)
    trailers = ((REQUEST_ID, call.request_id), (DETAILS_KEY, status.SerializeToString()))
    await context.abort(error.code, status.message, trailers)


_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
