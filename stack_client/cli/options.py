"""Options that several commands share, and where output goes."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from stack_client.home import Home

Subparsers = argparse._SubParsersAction  # noqa: SLF001 - argparse gives this type no public name


class IntermixedParser(argparse.ArgumentParser):
    """Takes an optional positional argument behind options too, which plain argparse does only from Python 3.13 on."""

    _inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:  # noqa: ANN401
        """As argparse does, but positional and optional arguments may alternate."""
        if self._inside:  # the intermixed parsing calls this method for its two passes
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return super().parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


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


def json_object(text: str) -> dict[str, Any]:
    """The JSON object of an option."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return value
