"""Run the tools service: `python -m services.tools --config stack.yaml`."""

import sys

from services.runtime.process import main
from services.tools.node import build

__all__ = ["build"]

if __name__ == "__main__":
    sys.exit(main("tools"))
