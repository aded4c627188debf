"""Reading a request's body: bounded in size and time, unpacked where it is packed."""

import asyncio
import zlib
from collections.abc import Mapping

import zstandard
from starlette.types import Receive

from stack_client.errors import CancelledError, DeadlineExceededError, InvalidArgumentError, ResourceExhaustedError

ENCODINGS = ("gzip", "deflate", "zstd")


class SlowClientError(DeadlineExceededError):
    """The body did not come."""

    http_status = 408


async def read_body(headers: Mapping[str, str], receive: Receive, *, most: int, seconds: float) -> bytes:
    """The whole body, unpacked.

    Args:
        headers: The request's, by lower-case name.
        receive: ASGI's.
        most: Largest size, before and after unpacking.
        seconds: Time for each piece.

    Raises:
        ResourceExhaustedError: It is larger than allowed.
        InvalidArgumentError: It is packed in a way that we do not know, or damaged.
        SlowClientError: A piece did not come in time.
        CancelledError: The client went away.
    """
    announced = headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > most:
        raise too_large(most)
    unpack = unpacker(headers.get("content-encoding", ""), most=most)
    pieces: list[bytes] = []
    size = 0
    while True:
        packed, more = await next_piece(receive, seconds)
        piece = unpack(packed, more=more)
        size += len(piece)
        if size > most:
            raise too_large(most)
        pieces.append(piece)
        if not more:
            return b"".join(pieces) if len(pieces) > 1 else pieces[0]


async def next_piece(receive: Receive, seconds: float) -> tuple[bytes, bool]:
    """The next piece of a body, and whether more follows.

    Raises:
        SlowClientError: It did not come in time.
        CancelledError: The client went away.
    """
    try:
        async with asyncio.timeout(seconds):
            message = await receive()
    except TimeoutError:
        raise SlowClientError(
            f"nothing more of the body came within {seconds:g} s", reason="DEADLINE_EXCEEDED"
        ) from None
    if message["type"] == "http.disconnect":
        raise CancelledError("the client went away while it sent its request")
    return message.get("body", b""), message.get("more_body", False)


def too_large(most: int) -> ResourceExhaustedError:
    """The error for a body over the limit."""
    return ResourceExhaustedError(
        f"the body is larger than {most} bytes; `gateway.max_body_bytes` and `gateway.max_upload_bytes` set the limits",
        reason="MESSAGE_TOO_LARGE",
    )


class UnknownEncodingError(InvalidArgumentError):
    """A body packed in a way that we do not know."""

    http_status = 415


class Plain:
    """A body that is not packed."""

    def __call__(self, data: bytes, *, more: bool) -> bytes:  # noqa: ARG002
        """The same."""
        return data


class Zlib:
    """A body packed with gzip or deflate."""

    def __init__(self, *, most: int) -> None:
        self._unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        self._most = most
        self._size = 0

    def __call__(self, data: bytes, *, more: bool) -> bytes:
        """What a piece holds.

        Raises:
            InvalidArgumentError: It is damaged or ends too early.
            ResourceExhaustedError: It unpacks to more than allowed.
        """
        try:
            out = self._unpack.decompress(data, self._most - self._size + 1)
        except zlib.error as error:
            raise InvalidArgumentError(f"the body is no valid gzip: {error}") from None
        self._size += len(out)
        if self._size > self._most or self._unpack.unconsumed_tail:
            raise too_large(self._most)
        if not more and not self._unpack.eof and self._size + len(data):
            raise InvalidArgumentError("the packed body ends too early")
        return out


class Zstd:
    """A body packed with zstd."""

    def __init__(self, *, most: int) -> None:
        self._pieces: list[bytes] = []
        self._most = most

    def __call__(self, data: bytes, *, more: bool) -> bytes:
        """Nothing until the body is there, then all that it holds.

        Raises:
            InvalidArgumentError: It is damaged.
            ResourceExhaustedError: It is, or unpacks to, more than allowed.
        """
        self._pieces.append(data)
        if sum(map(len, self._pieces)) > self._most:
            raise too_large(self._most)
        if more:
            return b""
        reader = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(b"".join(self._pieces))
        out = bytearray()
        try:
            while chunk := reader.read(1 << 16):
                out += chunk
                if len(out) > self._most:
                    raise too_large(self._most)
        except zstandard.ZstdError as error:
            raise InvalidArgumentError(f"the body is no valid zstd: {error}") from None
        return bytes(out)


def unpacker(encoding: str, *, most: int) -> Plain | Zlib | Zstd:
    """What unpacks a body.

    Raises:
        UnknownEncodingError: Nothing of ours does.
    """
    name = encoding.strip().lower()
    if name in {"", "identity"}:
        return Plain()
    if name in {"gzip", "x-gzip", "deflate"}:
        return Zlib(most=most)
    if name == "zstd":
        return Zstd(most=most)
    raise UnknownEncodingError(f"content-encoding {name!r} is not known; use one of {', '.join(ENCODINGS)}")
