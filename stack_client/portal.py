"""Calling the asynchronous client from synchronous code: one event loop in one thread, for the whole process.

gRPC's asyncio engine serves one loop per process well and several badly (grpc/grpc#25364), so all synchronous clients
share this one. It also works where a loop is running already, as in Jupyter.
"""

import asyncio
import concurrent.futures
import inspect
import sys
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping
from functools import cached_property, wraps
from typing import Any, Generic, Self, TypeVar, get_type_hints

from stack_client.channel import TlsFiles
from stack_client.client import StackClient
from stack_client.errors import FailedPreconditionError

T = TypeVar("T")

_END = object()


class Portal:
    """A loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._spawned: set[asyncio.Task[object]] = set()
        self._loop.set_exception_handler(_on_fault)
        self._thread = threading.Thread(target=self._loop.run_forever, name="stack-client", daemon=True)

    def start(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it; an interrupt cancels it and waits until it has ended.

        Raises:
            FailedPreconditionError: If called on the loop itself, for which it would wait for ever.
        """
        if self.is_current_thread:
            work.close()
            message = "synchronous calls block the loop that asynchronous tools run on; use StackClient with await"
            raise FailedPreconditionError(message)
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[T]] = []

        def start() -> None:
            task = self._loop.create_task(work)
            tasks.append(task)
            task.add_done_callback(finish)

        def finish(task: asyncio.Task[T]) -> None:
            if task.cancelled():
                outcome.set_exception(concurrent.futures.CancelledError())
            elif error := task.exception():
                outcome.set_exception(error)
            else:
                outcome.set_result(task.result())

        self._loop.call_soon_threadsafe(start)
        try:
            return outcome.result()
        except BaseException:
            if not outcome.done():
                self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())  # noqa: PLW0108 (it may yet be started)
                concurrent.futures.wait([outcome])
            raise

    @property
    def is_current_thread(self) -> bool:
        """Whether this is the loop's own thread."""
        return threading.current_thread() is self._thread

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine on the loop without waiting for it."""
        self._loop.call_soon_threadsafe(self._keep, work)

    def _keep(self, work: Coroutine[Any, Any, object]) -> None:
        task = self._loop.create_task(work)
        self._spawned.add(task)
        task.add_done_callback(self._spawned.discard)


class SyncStream(Generic[T]):
    """The items of an asynchronous iterator as a plain iterator; leaving early closes it.

    `with` closes it at the end of the block, `break` as soon as nothing refers to it any more.
    """

    def __init__(self, items: AsyncIterator[T]) -> None:
        self._items = items
        self._ended = False

    def __iter__(self) -> Self:
        """The items in order."""
        return self

    def __next__(self) -> T:
        """The next item, when it comes."""
        if self._ended:
            raise StopIteration
        try:
            item: T | object = portal().run(_next(self._items))
        except BaseException:
            self.close()
            raise
        if item is _END:
            self.close()
            raise StopIteration
        return item  # type: ignore[return-value] # not the end, so an item

    def __enter__(self) -> Self:
        """Iterate inside a `with` block."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Cancel what has not ended."""
        if not self._ended:
            self._ended = True
            portal().run(_close(self._items))

    def __del__(self) -> None:
        """Close what was left by `break`; at the end of the program the connection ends with it."""
        if not sys.is_finalizing() and not self._ended:
            if portal().is_current_thread:  # where the collector happened to run; waiting there would be for ever
                self._ended = True
                portal().spawn(_close(self._items))
            else:
                self.close()


async def _next(items: AsyncIterator[T]) -> T | object:
    return await anext(items, _END)


async def _close(items: Any) -> None:  # noqa: ANN401 (AsyncGenerator or EventStream; both have aclose)
    await items.aclose()


def _on_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Where other loops of the process use gRPC as well, its wake-ups reach all of them; all but one find nothing."""
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)


_portal: Portal | None = None
_starting = threading.Lock()


def portal() -> Portal:
    """The process's portal, started at its first use."""
    global _portal  # noqa: PLW0603 (gRPC's engine is one per process, and so is this)
    with _starting:
        if _portal is None:
            _portal = Portal().start()
        return _portal


class SyncStackClient:
    """`StackClient` for synchronous code: the same namespaces and methods, without `await`.

    Streams are plain iterators.
    """

    def __init__(self, target: str | Mapping[str, str] | None = None, *, tls: TlsFiles | None = None) -> None:
        self.client = portal().run(_build(target, tls))
        """The asynchronous client underneath, which lives on the portal's loop."""

    def __enter__(self) -> Self:
        """Nothing to do before the first call."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        portal().run(self.client.close())

    def __getattr__(self, name: str) -> "SyncNamespace":
        """A namespace of `StackClient`."""
        if name not in _namespaces():
            raise AttributeError(f"StackClient has no namespace {name!r}; it has: {', '.join(_namespaces())}")
        return SyncNamespace(self.client, name)

    def __dir__(self) -> list[str]:
        """The namespaces, for completion in notebooks."""
        return [*super().__dir__(), *_namespaces()]


class SyncNamespace:
    """One namespace, its methods made synchronous."""

    def __init__(self, client: StackClient, name: str) -> None:
        self._client = client
        self._name = name
        self._class = _namespaces()[name]

    def __getattr__(self, method: str) -> Any:  # noqa: ANN401 (a proxy)
        """The method, made synchronous."""
        if method.startswith("_"):
            raise AttributeError(method)

        @wraps(getattr(self._class, method))
        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (a proxy)
            # The call itself happens on the loop: gRPC objects are made where they are used.
            result = portal().run(_invoke(self._client, self._name, method, args, kwargs))
            return SyncStream(result) if isinstance(result, AsyncIterator) else result

        return call

    def __dir__(self) -> list[str]:
        """The methods, for completion in notebooks."""
        return [*super().__dir__(), *(name for name in dir(self._class) if not name.startswith("_"))]


def _namespaces() -> dict[str, type]:
    """Class of each namespace of `StackClient`, by name."""
    return {
        name: get_type_hints(member.func)["return"]
        for name, member in vars(StackClient).items()
        if isinstance(member, cached_property)
    }


async def _build(target: str | Mapping[str, str] | None, tls: TlsFiles | None) -> StackClient:
    return StackClient(target, tls=tls)


async def _invoke(client: StackClient, name: str, method: str, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
    result = getattr(getattr(client, name), method)(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result
