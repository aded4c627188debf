"""`stack up` and `stack down`."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stack_client.cli.mesh import add_mesh_path, load
from stack_client.cli.options import Subparsers, add_home, home_of, print_json
from stack_client.cli.status import Status, fetch
from stack_client.cli.views import ReadinessView
from stack_client.errors import DeadlineExceededError, FailedPreconditionError
from stack_client.home import Home

_POLL_SECONDS = 0.1


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the commands."""
    start = subparsers.add_parser("up", help="start the stack on this machine and keep it running")
    start.add_argument("--config", type=Path, metavar="FILE", help="YAML configuration; without it all defaults")
    add_home(start)
    start.add_argument("--detach", action="store_true", help="return once everything is ready; stop with `stack down`")
    start.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="with --detach: wait this long")
    start.add_argument(
        "--services",
        nargs="+",
        metavar="NAMES",
        default=[],
        help="services to start, one process per argument, `a,b` in one process (default: all)",
    )
    start.set_defaults(command=up)
    end = subparsers.add_parser("down", help="stop the running stack")
    add_home(end)
    end.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="then kill (default 30)")
    end.add_argument("--json", action="store_true", help="print JSON")
    end.set_defaults(command=down)


def up(arguments: argparse.Namespace) -> int:
    """Run the stack in the foreground, or start it in the background."""
    home = home_of(arguments)
    config = arguments.config.expanduser().absolute() if arguments.config else None
    groups: list[list[str]] = [item.split(",") for item in arguments.services]
    if arguments.detach:
        return _detach(home, config=config, services=arguments.services, timeout=arguments.timeout)
    local = load("compose.local")
    with ReadinessView() as view:
        local.up(config_path=config, home=home, groups=groups, report=view.report)
    print("stopped")
    return 0


def down(arguments: argparse.Namespace) -> int:
    """Stop the stack of a home."""
    home = home_of(arguments)
    pid = home.running().pid
    os.kill(pid, signal.SIGTERM)
    ended = _wait_for_end(home, seconds=arguments.timeout)
    if not ended:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # its children end with it
        _wait_for_end(home, seconds=5.0)
    if arguments.json:
        print_json({"pid": pid, "killed": not ended})
    else:
        print(f"stopped (pid {pid})" if ended else f"killed (pid {pid}) after {arguments.timeout:g} s")
    return 0


def _wait_for_end(home: Home, *, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while home.running_pid() is not None:
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _detach(home: Home, *, config: Path | None, services: Sequence[str], timeout: float) -> int:
    add_mesh_path()
    home.create()
    if home.running_pid() is not None:
        with home.locked():  # raises with the message that names the running one
            pass
    command = [sys.executable, "-m", "stack_client.cli", "up", "--home", str(home.path)]
    command += (["--config", str(config)] if config else []) + (["--services", *services] if services else [])
    log = home.logs / "supervisor.log"
    with log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    with ReadinessView() as view:
        ready = _wait_until_ready(home, process=process, view=view, seconds=timeout)
    if ready:
        print(f"running (pid {process.pid}); stop it with `stack down`")
        return 0
    if process.poll() is None:
        raise DeadlineExceededError(f"not ready after {timeout:g} s; it goes on: `stack status`, `stack logs`")
    said = log.read_bytes()[start:].decode(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    raise FailedPreconditionError(errors[-1] if errors else f"the stack did not start; see {log}")


def _wait_until_ready(home: Home, *, process: "subprocess.Popen[bytes]", view: ReadinessView, seconds: float) -> bool:
    until, last = time.monotonic() + seconds, dict[str, Status]()
    while process.poll() is None and time.monotonic() < until:
        record = home.read_record()
        if record is not None and record.pid == process.pid:
            for name in record.services if not last else ():
                view.report(name, "waiting", "process to start")
            for status in fetch(record):
                if last.get(status.service) != status:
                    state = "waiting" if status.state == "unreachable" else status.state
                    view.report(status.service, state, status.waiting_for or status.details.get("http", ""))
                    last[status.service] = status
            if last and all(status.state == "ready" for status in last.values()):
                return True
        time.sleep(_POLL_SECONDS)
    return False
