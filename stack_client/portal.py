"""Calling the asynchronous client from synchronous code: one event loop in one thread, for the whole process.

gRPC's asyncio engine serves one loop per process well and several badly (grpc/grpc#25364), so all synchronous clients
share this one. It also works where a loop is running already, as in Jupyter.
"""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterator, Mapping
from functools import cache
from typing import Any, Self, TypeVar

from stack_client.channel import TlsFiles
from stack_client.client import StackClient

T = TypeVar("T")

_END = object()


class Portal:
    """A loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stack-client", daemon=True)

    def start(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it; an interrupt cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, events: AsyncIterable[T]) -> Iterator[T]:
        """The items of an asynchronous iterator; leaving early closes it."""
        iterator = aiter(events)
        try:
            while (item := self.run(_next(iterator))) is not _END:
                yield item  # type: ignore[misc]
        finally:
            for closing in (getattr(events, "aclose", None), getattr(iterator, "aclose", None)):
                if closing is not None:
                    self.run(closing())


async def _next(iterator: AsyncIterator[T]) -> T | object:
    return await anext(iterator, _END)


@cache
def portal() -> Portal:
    """The process's portal, started at its first use."""
    return Portal().start()


class SyncStackClient:
    """`StackClient` for synchronous code: the same namespaces and methods, without `await`.

    Streams are plain iterators.
    """

    def __init__(self, target: str | Mapping[str, str] | None = None, *, tls: TlsFiles | None = None) -> None:
        self._client = portal().run(_build(target, tls))

    def __enter__(self) -> Self:
        """Nothing to do before the first call."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        portal().run(self._client.close())

    def __getattr__(self, name: str) -> "SyncNamespace":
        """A namespace of `StackClient`."""
        if name.startswith("_") or not hasattr(StackClient, name):
            raise AttributeError(f"StackClient has no namespace {name!r}")
        return SyncNamespace(self._client, name)

    def __dir__(self) -> list[str]:
        """The namespaces, for completion in notebooks."""
        return [*super().__dir__(), *(name for name in dir(StackClient) if not name.startswith("_"))]


class SyncNamespace:
    """One namespace, its methods made synchronous."""

    def __init__(self, client: StackClient, name: str) -> None:
        self._client = client
        self._name = name

    def __getattr__(self, method: str) -> Any:  # noqa: ANN401 (a proxy)
        """The method, made synchronous."""
        if method.startswith("_"):
            raise AttributeError(method)

        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (a proxy)
            # The call itself happens on the loop: gRPC objects are made where they are used.
            result = portal().run(_invoke(self._client, self._name, method, args, kwargs))
            return portal().iterate(result) if isinstance(result, AsyncIterable) else result

        return call


async def _build(target: str | Mapping[str, str] | None, tls: TlsFiles | None) -> StackClient:
    return StackClient(target, tls=tls)


async def _invoke(client: StackClient, name: str, method: str, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
    result = getattr(getattr(client, name), method)(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result
