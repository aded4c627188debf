"""Run all benchmarks: `python -m benchmarks`, or some: `python -m benchmarks sdk start`."""

import sys

from benchmarks import (
    agents,
    constraints,
    gateway,
    gpu,
    inference,
    inference_overhead,
    memory,
    quality,
    safety,
    sdk,
    start,
)

ALL = {
    "gpu": gpu.main,
    "sdk": sdk.main,
    "start": start.main,
    "inference_overhead": inference_overhead.main,
    "quality": quality.main,
    "inference": inference.main,
    "constraints": constraints.main,
    "safety": safety.main,
    "memory": memory.main,
    "agents": agents.main,
    "gateway": gateway.main,
}


def main() -> int:
    """Run what is named, or everything."""
    names = sys.argv[1:] or list(ALL)
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are: {', '.join(ALL)}", file=sys.stderr)
        return 2
    for name in names:
        ALL[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
