"""Run the router: `python -m services.router --config stack.yaml`."""

import sys

from services.router.router import build
from services.runtime.process import main

__all__ = ["build"]

if __name__ == "__main__":
    sys.exit(main("router"))
