"""`stack embed`: turn texts into vectors."""

import argparse
import json
import sys

from rich.console import Console
from rich.table import Table

from llamastack import v1
from stack_client.cli.connection import add_target, choose_model, connected
from stack_client.cli.options import Subparsers, on_terminal

SHOWN = 4


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("embed", help="turn texts into vectors")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts (default: the lines that come through a pipe)")
    parser.add_argument("-m", "--model", metavar="MODEL", help="identifier (default: the first that is ready)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of one vector a line")
    add_target(parser)
    parser.set_defaults(command=embed, usage_error=parser.error)


def embed(arguments: argparse.Namespace) -> int:
    """Print a vector per text: a JSON array a line, or a table on a terminal."""
    texts: list[str] = arguments.texts
    if not texts and not sys.stdin.isatty():
        texts = [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not texts:
        arguments.usage_error("there is no text; give some as arguments, or as lines through a pipe")
    with connected(arguments) as client:
        model = choose_model(client, arguments.model, of_type=v1.MODEL_TYPE_EMBEDDING)
        vectors: list[list[float]] = client.inference.embed(model, texts)
    if arguments.json:
        print(json.dumps({"model": model, "embeddings": vectors}))
    elif on_terminal():
        Console().print(_table(texts, vectors))
    else:
        for vector in vectors:
            print(json.dumps(vector))
    return 0


def _table(texts: list[str], vectors: list[list[float]]) -> Table:
    table = Table("text", "dimension", "vector")
    for text, vector in zip(texts, vectors, strict=True):
        beginning = "  ".join(f"{value:+.4f}" for value in vector[:SHOWN])
        table.add_row(text, str(len(vector)), f"{beginning}  …")
    return table
