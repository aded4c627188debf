"""The `stack` command.

Each module in `GROUPS` exposes `add_commands(subparsers)`, which adds parsers with `set_defaults(command=function)`;
the function takes the parsed arguments and returns the exit code: 0 ok, 1 failure, 2 usage, 130 Ctrl-C. Modules are
imported when the command runs, so keep their imports light.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from stack_client.errors import StackError
from stack_client.version import version

GROUPS = [
    "lifecycle",
    "serve",
    "status",
    "health",
    "logs",
    "models",
    "chat",
    "agent",
    "complete",
    "embed",
    "memory",
    "tools",
    "keys",
    "shield",
    "audit",
    "tracing",
    "eval",
]
"""Modules of this package with commands; to add commands, add a module and its name."""


def command_line() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="stack", description="Run and use a Llama Stack mesh.")
    parser.add_argument("--version", action="version", version=f"llama-stack-mesh {version()}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in GROUPS:
        importlib.import_module(f"stack_client.cli.{name}").add_commands(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = command_line().parse_args(argv)
    try:
        return int(arguments.command(arguments) or 0)
    except StackError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `stack logs | head`
        sys.stderr.close()
        return 1
    except OSError as error:  # a full disk, a folder that cannot be made
        print(f"error: {error}", file=sys.stderr)
        return 1
