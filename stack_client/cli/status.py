"""`stack status`."""

import argparse
import asyncio
from dataclasses import asdict, dataclass

import grpc
from rich.console import Console
from rich.table import Table

from llamastack import v1
from stack_client.cli.options import Subparsers, add_home, home_of, on_terminal, print_json
from stack_client.home import Home, StackRecord

_STATES = {
    v1.SERVICE_STATE_STARTING: "waiting",
    v1.SERVICE_STATE_READY: "ready",
    v1.SERVICE_STATE_FAILED: "failed",
    v1.SERVICE_STATE_DRAINING: "draining",
}


@dataclass(frozen=True, kw_only=True)
class Status:
    """One service as it is now."""

    service: str
    """Its name."""
    state: str
    """`waiting`, `ready`, `failed`, `draining`, or `unreachable`."""
    waiting_for: str
    """Why it is not ready."""
    version: str
    """Version of the distribution it runs."""
    pid: int
    """Process id; 0 when unreachable."""
    addresses: list[str]
    """Where it listens."""
    details: dict[str, str]
    """What it tells about itself, such as its models."""


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("status", help="show the running services: health, version, models, addresses")
    add_home(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=status)


def status(arguments: argparse.Namespace) -> int:
    """Show every service; 0 when all are ready, else 1."""
    home = home_of(arguments)
    record = home.running()
    found = fetch(record)
    if arguments.json:
        about = {"pid": record.pid, "version": record.version, "started_at": record.started_at, "config": record.config}
        print_json({**about, "home": str(home.path), "services": [asdict(item) for item in found]})
    elif on_terminal():
        Console().print(_table(found, home=home, record=record))
    else:
        for item in found:
            facts = " ".join(f"{key}={value}" for key, value in sorted(item.details.items()))
            waits = f" ({item.waiting_for})" if item.waiting_for else ""
            print(f"{item.service:<14} {item.state}{waits} {item.version} {' '.join(item.addresses)} {facts}".rstrip())
    return 0 if all(item.state == "ready" for item in found) else 1


def fetch(record: StackRecord) -> list[Status]:
    """Ask every service of a running stack."""
    return asyncio.run(_fetch(record))


async def _fetch(record: StackRecord) -> list[Status]:
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_ask(name, addresses=item.addresses)) for name, item in sorted(record.services.items())
        ]
    return [task.result() for task in tasks]


async def _ask(name: str, *, addresses: list[str]) -> Status:
    async with grpc.aio.insecure_channel(addresses[0]) as channel:
        try:
            answer = await v1.InspectServiceStub(channel).GetStatus(v1.GetStatusRequest(), timeout=5)
        except grpc.aio.AioRpcError:
            return Status(
                service=name,
                state="unreachable",
                waiting_for="process to start",
                version="",
                pid=0,
                addresses=addresses,
                details={},
            )
    return Status(
        service=name,
        state=_STATES.get(answer.state, "unknown"),
        waiting_for=answer.waiting_for,
        version=answer.version,
        pid=answer.pid,
        addresses=list(answer.addresses),
        details=dict(answer.details),
    )


def _table(found: list[Status], *, home: Home, record: StackRecord) -> Table:
    table = Table(title=f"{home.path}  pid {record.pid}  since {record.started_at}")
    for column in ("service", "state", "version", "addresses", "details"):
        table.add_column(column)
    for item in found:
        state = f"{item.state}: {item.waiting_for}" if item.waiting_for else item.state
        facts = "\n".join(f"{key}: {value}" for key, value in sorted(item.details.items()))
        table.add_row(item.service, state, item.version, "\n".join(item.addresses), facts)
    return table
