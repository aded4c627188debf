"""`python -m services.safety.evaluate`: measure the shields of a running stack."""

import argparse
import sys
from pathlib import Path

from services.safety.baseline import corpora
from services.safety.baseline.corpora import MissingCorpusError
from services.safety.evaluate.evaluation import run
from stack_client.errors import StackError
from stack_client.portal import SyncStackClient


def main() -> int:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(prog="python -m services.safety.evaluate", description=__doc__)
    parser.add_argument("shields", nargs="*", metavar="SHIELD", help="names (default: all)")
    parser.add_argument(
        "--safety", metavar="ADDRESS", help="address of the safety service (default: the running stack)"
    )
    parser.add_argument("--data", type=Path, nargs="+", default=[], metavar="FILE", help="labelled texts, JSON lines")
    parser.add_argument("--site", type=Path, action="append", default=[], help="a folder that holds corpus packages")
    parser.add_argument("--out", type=Path, default=Path("shield-eval"), metavar="DIR", help="for curves and figures")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="texts per source at most (default: all)")
    parser.add_argument("--no-disguises", action="store_true", help="leave out the grid of disguises")
    args = parser.parse_args()
    try:
        for folder in args.site:
            corpora.add_site(folder)
        with SyncStackClient({"safety": args.safety} if args.safety else None) as client:
            return run(
                client, shields=args.shields, data=args.data, out=args.out, limit=args.limit,
                disguises=not args.no_disguises,
            )  # fmt: skip
    except (MissingCorpusError, StackError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
