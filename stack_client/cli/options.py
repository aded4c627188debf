"""Options that several commands share, and where output goes."""

import argparse
import json
import sys
from pathlib import Path

from stack_client.home import Home

Subparsers = argparse._SubParsersAction  # noqa: SLF001 - argparse gives this type no public name


def add_home(parser: argparse.ArgumentParser) -> None:
    """`--home DIR`."""
    parser.add_argument(
        "--home", type=Path, metavar="DIR", help="folder of the stack (default: $STACK_HOME, else ~/.llama-stack-mesh)"
    )


def home_of(arguments: argparse.Namespace) -> Home:
    """The chosen home."""
    return Home.choose(arguments.home)


def print_json(value: object) -> None:
    """One JSON document for programs."""
    print(json.dumps(value, indent=2))


def on_terminal() -> bool:
    """Whether a person is looking; otherwise output is plain lines."""
    return sys.stdout.isatty()
