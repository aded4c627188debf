"""Run the safety service: `python -m services.safety --config stack.yaml`."""

import sys

from services.runtime.process import main
from services.safety.node import build

__all__ = ["build"]

if __name__ == "__main__":
    sys.exit(main("safety"))
