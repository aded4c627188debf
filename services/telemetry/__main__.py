"""Run the telemetry service: `python -m services.telemetry --config stack.yaml`."""

import sys

from services.runtime.process import main
from services.telemetry.node import build

__all__ = ["build"]

if __name__ == "__main__":
    sys.exit(main("telemetry"))
