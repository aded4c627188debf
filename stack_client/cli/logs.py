"""`stack logs`."""

import argparse
import os
import time
from pathlib import Path

from stack_client.cli.options import Subparsers, add_home, home_of
from stack_client.errors import NotFoundError
from stack_client.home import Home

_POLL_SECONDS = 0.3


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("logs", help="show what the processes logged")
    parser.add_argument("names", nargs="*", metavar="NAME", help="services or processes (default: all)")
    add_home(parser)
    parser.add_argument("--lines", "-n", type=int, default=50, metavar="N", help="last lines of each (default 50)")
    parser.add_argument("--follow", "-f", action="store_true", help="go on with what is logged from now; end by Ctrl-C")
    parser.set_defaults(command=logs)


def logs(arguments: argparse.Namespace) -> int:
    """Print the last lines, and with --follow what comes after."""
    paths = _paths(home_of(arguments), names=arguments.names)
    positions: dict[Path, int] = {}
    for path in paths:
        content = path.read_bytes()
        positions[path] = len(content)
        _show(path, text=b"\n".join(content.splitlines()[-arguments.lines :]), named=len(paths) > 1)
    while arguments.follow:
        for path in paths:
            positions[path] = _more(path, position=positions[path], named=len(paths) > 1)
        time.sleep(_POLL_SECONDS)
    return 0


def _paths(home: Home, *, names: list[str]) -> list[Path]:
    present = {path.stem: path for path in sorted(home.logs.glob("*.log"))}
    if not names:
        if not present:
            raise NotFoundError(f"nothing was logged in {home.logs} yet; start a stack with `stack up`")
        return list(present.values())
    record = home.read_record()
    hosts = {name: item.process for name, item in record.services.items()} if record else {}
    chosen: dict[Path, None] = {}  # two services may share a process
    for name in names:
        process = name if name in present else hosts.get(name, name)
        if process not in present and "services" in present and not record:
            process = "services"  # the stack is down; light services share this log
        if process not in present:
            raise NotFoundError(f'no log of "{name}" in {home.logs}; there are: {", ".join(present) or "none"}')
        chosen[present[process]] = None
    return list(chosen)


def _show(path: Path, *, text: bytes, named: bool) -> None:
    for line in text.decode(errors="replace").splitlines():
        print(f"{path.stem:<10} {line}" if named else line, flush=True)


def _more(path: Path, *, position: int, named: bool) -> int:
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < position:
                position = 0  # rotated
            file.seek(position)
            text = file.read()
    except FileNotFoundError:
        return 0
    _show(path, text=text, named=named)
    return position + len(text)
