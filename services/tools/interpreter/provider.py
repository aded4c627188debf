"""The provider `code-interpreter`: one tool that runs Python in a sandbox, with a state for each session."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from llamastack import v1
from services.runtime.reader import read_config
from services.tools.interpreter import folder, result
from services.tools.interpreter.config import InterpreterConfig
from services.tools.interpreter.job import Outcome, Room, Tier, Unavailable
from services.tools.interpreter.output import Output
from services.tools.interpreter.sessions import Sessions
from services.tools.interpreter.tiers import Tiers
from services.tools.provider import Access, Call, ProviderContext
from stack_client.errors import InvalidArgumentError

_log = logging.getLogger(__name__)

TOOL = "code_interpreter"
_MARGIN = 0.5
"""Seconds before the runtime's deadline at which a call is ended with an answer."""


class CodeInterpreter:
    """Runs the code of models. Use `async with`."""

    def __init__(self, context: ProviderContext) -> None:
        self._config = read_config(
            InterpreterConfig, context.config, file=context.service.config.file, at="tools.providers.code-interpreter"
        )
        self._details = context.service.readiness.details
        self._details["code interpreter"] = "not tried yet"
        self._tiers = Tiers(self._config, cache_dir=context.service.cache_dir, tell=self._tell)
        self._sessions = Sessions(context.data_dir / "sessions", self._config, forget=self._tiers.forget)
        self._slots = asyncio.Semaphore(self._config.concurrency)
        self._wanted = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._background: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Find the sessions; what takes seconds is done beside the first calls."""
        await self._sessions.open()
        await self._tasks.__aenter__()
        self._background = [
            self._tasks.create_task(self._sessions.sweep()),
            self._tasks.create_task(self._prepare()),
        ]
        if self._config.prepare == "start":
            self._wanted.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End all processes; sessions stay on disk."""
        for task in self._background:
            task.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self._tiers.close()

    async def check(self, group: v1.ToolGroup, access: Access) -> None:
        """See `ToolProvider`."""
        del access
        if group.HasField("mcp_endpoint"):
            raise InvalidArgumentError("code-interpreter has no MCP server: leave it out", field="mcp_endpoint")
        for name in group.args:
            message = f"code-interpreter has no argument {name!r}: its settings are the operator's"
            raise InvalidArgumentError(message, field=f"args.{name}")
        if group.settings.egress_hosts:
            message = "code-interpreter never reaches a network: leave egress_hosts out"
            raise InvalidArgumentError(message, field="settings.egress_hosts")
        if group.settings.secrets_ref:
            message = "code-interpreter hands no secrets to code: leave secrets_ref out"
            raise InvalidArgumentError(message, field="settings.secrets_ref")

    async def list_tools(self, group: v1.ToolGroup, access: Access) -> Sequence[v1.ToolDef]:
        """See `ToolProvider`."""
        del access
        tool = v1.ToolDef(name=TOOL, toolgroup_id=group.identifier, effect=v1.TOOL_EFFECT_WRITE)
        packages = (
            "numpy, pandas and matplotlib where they are installed; figures are saved by themselves."
            if self._tiers.figures
            else "the standard library only, no numpy, pandas or matplotlib, no threads or subprocesses."
        )
        tool.description = (
            "Runs Python 3 in a sandbox without network and returns what it prints and the value of a last "
            f"expression. There is {packages} Files written to the working folder are returned. Variables and files "
            "stay for later calls of the same session."
        )
        tool.input_schema.update(
            {
                "type": "object",
                "properties": {"code": {"type": "string", "description": "Python source to run."}},
                "required": ["code"],
                "additionalProperties": False,
            }
        )
        return [tool]

    async def invoke(self, call: Call) -> v1.ToolInvocationResult:
        """See `ToolProvider`."""
        self._wanted.set()
        code = str(call.arguments["code"])
        deadline = asyncio.get_running_loop().time() + max(call.timeout - _MARGIN, call.timeout / 2)
        output = Output(call.report.output, most=self._config.output_bytes, flood=self._config.flood_bytes)
        try:
            code.encode()
            async with asyncio.timeout_at(deadline) as waiting:
                await self._slots.acquire()
            try:
                async with contextlib.AsyncExitStack() as stack:
                    async with asyncio.timeout_at(deadline) as waiting:
                        tier = await self._tiers.choose()
                        entering = self._sessions.room(tenant=call.access.tenant, session_id=call.session_id)
                        room = await stack.enter_async_context(entering)
                    left = min(self._config.seconds, deadline - asyncio.get_running_loop().time())
                    return await self._run(tier, room, code, output=output, seconds=left)
            finally:
                self._slots.release()
        except UnicodeEncodeError as error:
            return _refused(f"the code has a character that is no text (position {error.start}): remove it")
        except Unavailable as error:
            return _refused(f"the code interpreter cannot run: {error}")
        except TimeoutError:
            if not waiting.expired():
                raise
            return _refused("the code interpreter was busy until the call's time was over: try again later")

    async def removed(self, group: v1.ToolGroup, access: Access) -> None:
        """See `ToolProvider`; sessions belong to agents and expire by themselves."""

    def _tell(self, state: str) -> None:
        """For `stack status`."""
        self._details["code interpreter"] = state

    async def _prepare(self) -> None:
        await self._wanted.wait()
        await self._tiers.prepare()

    async def _run(
        self, tier: Tier, room: Room, code: str, *, output: Output, seconds: float
    ) -> v1.ToolInvocationResult:
        before = await asyncio.to_thread(self._put, room, code)
        outcome = await tier.run(room, output=output, seconds=seconds)
        if outcome.end == "died":
            _log.warning("a sandbox died", extra={"tier": tier.name, "detail": outcome.detail})
        return await asyncio.to_thread(self._take, tier, room, outcome, output, before, seconds)

    def _put(self, room: Room, code: str) -> dict[str, folder.Seen]:
        """Lay the job into the inbox; the state of the working folder before."""
        for name in ("result", "restored"):
            folder.remove(str(room.state / name))
        counter = room.path / "number"
        number = int(counter.read_text(encoding="ascii")) + 1 if counter.exists() else 1
        counter.write_text(str(number), encoding="ascii")
        settings = {"number": number, "keep": int(bool(room.key)), "state_bytes": self._config.disk_bytes // 2}
        (room.inbox / "job").write_text(
            "".join(f"{key}={value}\n" for key, value in settings.items()), encoding="ascii"
        )
        (room.inbox / "code").write_bytes(code.encode())
        return folder.snapshot(str(room.work), most=self._config.disk_entries)

    def _take(  # noqa: PLR0917 (called in a thread)
        self,
        tier: Tier,
        room: Room,
        outcome: Outcome,
        output: Output,
        before: dict[str, folder.Seen],
        seconds: float,
    ) -> v1.ToolInvocationResult:
        """Make the result of what lies in the room."""
        said = result.read_said(room)
        files = result.Files() if outcome.end == "disk" else result.read_files(room, before, self._config)
        advice = ""
        if outcome.end or not said.complete:
            advice = self._advice(tier, outcome, seconds=seconds)
            if room.key:
                advice += f" {_after(room)}"
            if outcome.end == "disk":
                self._empty(room)
        return result.tell(outcome, said, output, files, advice=advice, lives_on=tier.figures and not advice)

    def _empty(self, room: Room) -> None:
        """Delete what was too much; kept variables stay, if it is not they."""
        folder.remove(str(room.work))
        kept = folder.read(str(room.state), "variables", most=self._config.disk_bytes)
        for path in list(room.state.iterdir()):
            if kept is None or path.name not in {"variables", "restored"}:
                folder.remove(str(path))

    def _advice(self, tier: Tier, outcome: Outcome, *, seconds: float) -> str:
        """What to change in code that was ended."""
        config = self._config
        memory = (config.wasm if tier.name == "wasm" else config.native).memory_bytes >> 20
        words = {
            "": "The code ended its own process: end it with sys.exit() or let it run to its last line.",
            "time": f"The code was stopped after {seconds:.3g} s: do less, sleep less, or split it over several calls.",
            "fuel": "The code was stopped: it computed too much; use a faster method, or do it in smaller parts.",
            "memory": f"The code was stopped: it needs too deep a recursion or more than {memory} MiB of memory; work "
            "on smaller parts, or with a loop.",
            "disk": f"The code was stopped: its files took more than {config.disk_bytes >> 20} MiB, or were more than "
            f"{config.disk_entries}, or lay too deep. The working folder was emptied: write less.",
            "output": f"The code was stopped: it printed more than {config.flood_bytes >> 20} MiB; print less, or "
            "write to a file.",
            "died": "The sandbox ended unexpectedly: use less memory, and nothing that reaches beyond Python.",
        }
        return words[outcome.end]


def _after(room: Room) -> str:
    """What is left of a session whose call was ended."""
    if not (room.state / "restored").is_file():
        folder.remove(str(room.state / "variables"))
        return "The variables of earlier calls could not be restored and were dropped: define them again."
    return "Variables are as before this call."


def _refused(message: str) -> v1.ToolInvocationResult:
    return v1.ToolInvocationResult(error_code=result.UNAVAILABLE, error_message=message)
