"""Run the agents service: `python -m services.agents --config stack.yaml`."""

import sys

from services.agents.node import build
from services.runtime.process import main

__all__ = ["build"]

if __name__ == "__main__":
    sys.exit(main("agents"))
