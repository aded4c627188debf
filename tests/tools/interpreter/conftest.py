"""The code interpreter as the tools service runs it, one tier at a time."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llamastack import v1
from services.runtime.config import read_stack
from services.runtime.readiness import Readiness
from services.runtime.service import ServiceContext
from services.runtime.telemetry import Telemetry
from services.tools.interpreter.config import InterpreterConfig
from services.tools.interpreter.native.tier import NativeTier
from services.tools.interpreter.provider import CodeInterpreter
from services.tools.interpreter.wasm import module
from services.tools.provider import Access, Call, ProviderContext

GROUP = v1.ToolGroup(identifier="builtin::code_interpreter", provider_id="code-interpreter")


class Recorder:
    """Keeps what a running tool reports."""

    def __init__(self) -> None:
        self.outputs: list[tuple[str, str]] = []
        self.printed = asyncio.Event()

    def progress(self, fraction: float | None, message: str = "") -> None:
        """Nothing reports any."""

    def output(self, stream: str, text: str) -> None:
        self.outputs.append((stream, text))
        self.printed.set()


class Interpreter:
    """An open provider, called as the runtime calls it."""

    def __init__(self, provider: CodeInterpreter, folder: Path) -> None:
        self.provider = provider
        self.folder = folder

    async def run(
        self, code: str, *, session: str = "", tenant: str = "", timeout: float = 30.0, report: Recorder | None = None
    ) -> v1.ToolInvocationResult:
        call = Call(
            group=GROUP,
            tool=v1.ToolDef(),
            arguments={"code": code},
            access=Access(tenant=tenant),
            idempotency_key="key",
            session_id=session,
            timeout=timeout,
            report=report or Recorder(),
        )
        return await self.provider.invoke(call)

    async def text(self, code: str, *, session: str = "", tenant: str = "") -> str:
        return shown(await self.run(code, session=session, tenant=tenant))

    @property
    def folders(self) -> list[str]:
        """The folders of sessions and calls on disk."""
        return sorted(path.name for path in (self.folder / "sessions").iterdir())


def shown(result: v1.ToolInvocationResult) -> str:
    """What a model reads."""
    return "".join(item.text for item in result.content.items) or result.error_message


def names_of(result: v1.ToolInvocationResult) -> list[str]:
    """The names of the attachments."""
    if "files" not in result.metadata:
        return []
    return [str(value.string_value) for value in result.metadata.fields["files"].list_value.values]


Open = Callable[..., AbstractAsyncContextManager[Interpreter]]


@pytest.fixture(scope="session")
async def cache_dir(request: pytest.FixtureRequest) -> Path:
    """Keeps the compiled module between runs; compiled before the first test, whose calls are bounded in time."""
    cache = request.config.cache
    assert cache is not None
    folder = cache.mkdir("interpreter")
    if not module.missing():
        await module.compiled(folder)
    return folder


@pytest.fixture(scope="session")
async def why_no_native() -> str:
    """Why the native tier cannot run here; empty when it can."""
    tier = NativeTier(InterpreterConfig())
    task = asyncio.create_task(tier.prepare())
    try:
        return await tier.problem()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await tier.close()


@pytest.fixture(params=["wasm", "native"])
def tier(request: pytest.FixtureRequest, why_no_native: str) -> str:
    """Each tier that can run here."""
    if request.param == "native":
        need_native(why_no_native)
    elif missing := module.missing():
        pytest.skip(f"not installed: {missing}")
    return str(request.param)


@pytest.fixture
def native(why_no_native: str) -> str:
    need_native(why_no_native)
    return "native"


def need_native(problem: str) -> None:
    if problem:
        assert not os.environ.get("REQUIRE_BUBBLEWRAP"), problem
        pytest.skip(problem)


@pytest.fixture
def opened(tmp_path: Path, cache_dir: Path) -> Open:
    """`async with opened("wasm", seconds=2.0) as interpreter`."""

    @asynccontextmanager
    async def opening(tier: str, *, cache: Path = cache_dir, **config: Any) -> AsyncIterator[Interpreter]:
        stack = read_stack(None, names=["tools"])
        service = ServiceContext(
            name="tools",
            config=stack,
            data_dir=tmp_path,
            cache_dir=cache,
            readiness=Readiness(name="tools"),
            draining=asyncio.Event(),
            telemetry=Telemetry(config=stack.runtime.telemetry, process="tools"),
        )
        settings = {"tier": tier, "seconds": 20.0, **config}
        context = ProviderContext(service=service, config=settings, data_dir=tmp_path / "interpreter")
        async with CodeInterpreter(context) as provider:
            yield Interpreter(provider, tmp_path / "interpreter")

    return opening


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is so; half a minute at most."""
    async with asyncio.timeout(30):
        while True:
            answer = condition()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.01)
