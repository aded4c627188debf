"""Run all parts, or some: `python -m benchmarks.memory`, `python -m benchmarks.memory cranfield scale`."""

import sys

from benchmarks.memory import PARTS

unknown = [name for name in sys.argv[1:] if name not in PARTS]
if unknown:
    sys.exit(f"no part {unknown[0]!r}; there are: {', '.join(PARTS)}")
for name in sys.argv[1:] or PARTS:
    PARTS[name]()
