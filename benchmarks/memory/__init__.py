"""Figures of the memory service: quality on Cranfield, speed at 100,000 chunks, a folder of files, chaos."""

from benchmarks.memory.chaos import main as chaos
from benchmarks.memory.cranfield import main as cranfield
from benchmarks.memory.folder import main as folder
from benchmarks.memory.scale import main as scale

PARTS = {"cranfield": cranfield, "scale": scale, "folder": folder, "chaos": chaos}


def main() -> None:
    """Run all parts."""
    for part in PARTS.values():
        part()
