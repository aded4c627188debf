"""Where the services are: given by the caller, read from the stack that runs on this machine, or the default ports."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

DEFAULT_PORTS = {
    "inference": 50051,
    "safety": 50052,
    "tools": 50053,
    "memory": 50054,
    "agents": 50055,
    "post_training": 50056,
    "evaluation": 50057,
}
HOME_VARIABLE = "STACK_HOME"
STATE_FILE = Path("run") / "stack.json"


def home(folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a stack on this machine: as given, else from STACK_HOME, else in the user's home."""
    return Path(folder or os.environ.get(HOME_VARIABLE) or "~/.llama-stack-mesh").expanduser().absolute()


def running(folder: str | os.PathLike[str] | None = None) -> dict[str, str] | None:
    """Addresses of the stack that was started in a folder (see `home`); None if none was."""
    try:
        state = json.loads((home(folder) / STATE_FILE).read_text())
    except (OSError, ValueError):
        return None
    return {name: entry["address"] for name, entry in state["services"].items()}


def resolve(target: str | Mapping[str, str] | None = None) -> dict[str, str]:
    """Addresses by service.

    Args:
        target: A mapping of service to address; or a host, which means its default ports; or None: the stack that
            runs on this machine, else the default ports on this machine.
    """
    if isinstance(target, Mapping):
        return dict(target)
    if target is None:
        found = running()
        if found is not None:
            return found
        target = "localhost"
    return {name: f"{target}:{port}" for name, port in DEFAULT_PORTS.items()}
