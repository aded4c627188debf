"""Figures of the memory service: quality on Cranfield, speed at 100,000 chunks, a folder of files, chaos."""

from benchmarks.memory import chaos, cranfield, folder, scale

PARTS = {"cranfield": cranfield.main, "scale": scale.main, "folder": folder.main, "chaos": chaos.main}


def main() -> None:
    """Run all parts."""
    for part in PARTS.values():
        part()
