"""Run the gateway: `python -m services.gateway --config stack.yaml`."""

import sys

from services.gateway.node import build
from services.runtime.process import main

__all__ = ["build"]

if __name__ == "__main__":
    sys.exit(main("gateway"))
