"""`stack serve`."""

import argparse
from pathlib import Path

from stack_client.cli.mesh import load
from stack_client.cli.options import Subparsers, add_home, home_of


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("serve", help="run services in this process, as in a container")
    parser.add_argument("services", nargs="+", metavar="SERVICE", help="inference, agents, safety, ...")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML configuration; without it all defaults")
    add_home(parser)
    # For the supervisor: what it decided, and whose child this is.
    parser.add_argument("--overlay", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(command=serve)


def serve(arguments: argparse.Namespace) -> int:
    """Host the services until SIGTERM or Ctrl-C."""
    process = load("services.runtime.process")
    code: int = process.run(
        arguments.services,
        config_path=arguments.config,
        home=home_of(arguments).path,
        overlay=arguments.overlay,
        parent=arguments.parent,
    )
    return code
