"""A whole stack on this machine: `stack up`."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import grpc

from compose.logfile import LogFile
from compose.plan import Plan, make_plan
from compose.supervisor import Child, Supervisor, end_leftovers, serve_command
from llamastack import v1
from services.runtime.config import ConfigError, StackConfig, read_stack
from stack_client.errors import FailedPreconditionError, InvalidArgumentError
from stack_client.home import Home, ProcessRecord, ServiceRecord, StackRecord
from stack_client.version import version

STARTING_POLL_SECONDS = 0.2
READY_POLL_SECONDS = 2.0
NOT_STARTED = ("waiting", "process to start")
STATES: Mapping[int, str] = {
    v1.SERVICE_STATE_STARTING: "waiting",
    v1.SERVICE_STATE_READY: "ready",
    v1.SERVICE_STATE_FAILED: "failed",
    v1.SERVICE_STATE_DRAINING: "draining",
}


Report = Callable[[str, str, str], None]
"""Called with a service, its state, and what it waits for."""


def up(*, config_path: Path | None, home: Home, groups: Sequence[Sequence[str]], report: Report) -> None:
    """Run the stack until Ctrl-C or SIGTERM.

    Args:
        config_path: The YAML file; None is all defaults.
        home: The stack's folder.
        groups: The services of each process; empty is the default.
        report: Told when the state of a service or process changes.

    Raises:
        FailedPreconditionError: A stack is already running in this home, or a process cannot start.
        InvalidArgumentError: The configuration is wrong.
    """
    with home.locked():
        before = home.read_record()
        if before is not None:  # its supervisor is dead, for we have its lock
            end_leftovers(before.processes, seconds=15.0)
            home.record_path.unlink(missing_ok=True)
        try:
            names = [service.partition("=")[0] for group in groups for service in group]
            config = read_stack(config_path, names=names)
            plan = make_plan(config, home=home, groups=groups)
        except ConfigError as error:
            raise InvalidArgumentError(str(error)) from error
        try:
            asyncio.run(_run(plan, config=config, config_path=config_path, home=home, report=report))
        finally:
            home.record_path.unlink(missing_ok=True)


async def _run(plan: Plan, *, config: StackConfig, config_path: Path | None, home: Home, report: Report) -> None:
    stop = asyncio.Event()
    record = StackRecord(
        pid=os.getpid(),
        version=version(),
        started_at=datetime.now(tz=UTC).isoformat(timespec="seconds"),
        config=str(config_path) if config_path else None,
    )
    children = []
    for process in plan.processes:
        for service in process.services:
            name = service.partition("=")[0]
            record.services[name] = ServiceRecord(process=process.name, addresses=plan.addresses[name])
        overlay = home.run / f"{process.name}.overlay.json"
        overlay.write_text(json.dumps(process.overlay, indent=2), encoding="utf-8")
        command = serve_command(
            process.services, config=config_path, home=home.path, overlay=overlay, parent=os.getpid()
        )
        children.append(Child(name=process.name, command=command, log=LogFile(home.logs / f"{process.name}.log")))

    def on_start(name: str, process: ProcessRecord) -> None:
        record.processes[name] = process
        home.write_record(record)

    board = Board(names=list(record.services), report=report)

    def on_death(process: str, reason: str) -> None:
        for name, service in record.services.items():
            if service.process == process:
                board.set(name, "died", reason)

    supervisor = Supervisor(children=children, on_start=on_start, on_death=on_death)

    def on_signal() -> None:
        if stop.is_set():  # asked twice: no grace
            supervisor.hurry()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    runtime = config.runtime
    stop_seconds = runtime.drain_notice_seconds + runtime.drain_grace_seconds + 5
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(_watch(plan.addresses, board=board))
        try:
            problem = await supervisor.run(stop=stop, stop_seconds=stop_seconds)
        finally:
            watch.cancel()
    if problem:  # raised out here, for a task group would wrap it
        raise FailedPreconditionError(problem)


class Board:
    """The last known state of every service; reports changes."""

    def __init__(self, *, names: Sequence[str], report: Report) -> None:
        self._report = report
        self._states = dict.fromkeys(names, ("", ""))

    def set(self, name: str, state: str, reason: str) -> None:
        """Note a state."""
        if self._states[name] != (state, reason):
            self._states[name] = (state, reason)
            self._report(name, state, reason)


async def _watch(addresses: Mapping[str, Sequence[str]], *, board: Board) -> None:
    """Keep the board up to date."""
    for name in addresses:
        board.set(name, *NOT_STARTED)
    async with asyncio.TaskGroup() as group:
        for name, targets in addresses.items():
            group.create_task(_watch_one(name, target=targets[0], board=board))


async def _watch_one(name: str, *, target: str, board: Board) -> None:
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        stub = v1.InspectServiceStub(channel)
        while True:
            try:
                status = await stub.GetStatus(v1.GetStatusRequest(), timeout=5)
                now = (STATES.get(status.state, "unknown"), status.waiting_for or status.details.get("http", ""))
            except grpc.aio.AioRpcError:
                now = NOT_STARTED
            board.set(name, *now)
            await asyncio.sleep(READY_POLL_SECONDS if now[0] == "ready" else STARTING_POLL_SECONDS)
