"""Run the agents service: `python -m services.agents --config stack.yaml`."""

import sys

from services.agents.node import build as build
from services.runtime.process import main

if __name__ == "__main__":
    sys.exit(main(["agents", *sys.argv[1:]]))
