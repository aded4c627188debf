"""Gives every call an id that appears in logs and in the answer."""

import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.runtime.calls import REQUEST_ID, Call
from services.runtime.interceptors.base import Around, Context, header

_ACCEPTABLE = re.compile(r"^[\w.:-]{1,128}$", re.ASCII)


class RequestId(Around):
    """Keeps the caller's `x-request-id` when it is a plain short token, else makes one; echoes it in the trailers.

    Not in the headers: sending those early would end the transport's own retries of failed calls.
    """

    @asynccontextmanager
    async def around(self, call: Call, *, context: Context, streams: bool) -> AsyncIterator[None]:  # noqa: ARG002
        """Set the id and send it back with the status."""
        given = header(context, name=REQUEST_ID)
        call.request_id = given if _ACCEPTABLE.match(given) else str(uuid.uuid4())
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        yield
