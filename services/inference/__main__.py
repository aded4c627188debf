"""Run the inference service: `python -m services.inference --config stack.yaml`."""

import sys

from services.inference.node import build
from services.runtime.process import main

__all__ = ["build"]

if __name__ == "__main__":
    sys.exit(main("inference"))
