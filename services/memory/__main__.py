"""Run the memory service: `python -m services.memory --config stack.yaml`."""

import sys

from services.memory.node import build
from services.runtime.process import main

__all__ = ["build"]

if __name__ == "__main__":
    sys.exit(main("memory"))
