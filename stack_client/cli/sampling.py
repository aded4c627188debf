"""Options of sampling, and the prompt that a command gets as argument or through a pipe."""

import argparse
import sys
from typing import Any

_NUMBERS = {
    "temperature": (float, "0 takes the likeliest token (default); higher is freer, up to 2"),
    "top_p": (float, "sample among the likeliest tokens with this share of the probability"),
    "top_k": (int, "sample among this many likeliest tokens"),
    "max_tokens": (int, "tokens of the answer at most"),
    "seed": (int, "makes sampling repeatable"),
    "repetition_penalty": (float, "above 1 makes repeating less likely"),
}


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """`--temperature`, `--top-p`, `--top-k`, `--max-tokens`, `--seed`, `--repetition-penalty`, `--stop`."""
    group = parser.add_argument_group("sampling")
    for name, (kind, text) in _NUMBERS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=text)
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")


def sampling_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The chosen settings as keywords of the client's methods."""
    return {name: getattr(arguments, name) for name in [*_NUMBERS, "stop"]}


def prompt_of(given: str | None) -> str:
    """The prompt given as argument, else what comes through a pipe; "" when neither is there."""
    if given is not None:
        return given
    return "" if sys.stdin.isatty() else sys.stdin.read().strip()
