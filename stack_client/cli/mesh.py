"""Find the services: beside the SDK in a checkout, inside it when installed."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from stack_client.errors import FailedPreconditionError

SERVER_PACKAGES = {
    "bandit", "confusable_homoglyphs", "grpc_health", "grpc_reflection", "jinja2", "numpy", "phonenumbers",
    "prometheus_client", "psutil", "re2", "regex", "stdnum", "yaml",
}  # fmt: skip


def add_mesh_path() -> None:
    """Make `services` and `compose` importable here and in child processes.

    The wheel ships them inside the SDK (DECISIONS.md), so that nobody's site-packages gets a package called `services`.
    """
    shipped = Path(__file__).resolve().parent.parent / "_mesh"
    if not shipped.is_dir() or str(shipped) in sys.path:
        return
    sys.path.insert(0, str(shipped))
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(shipped), *([inherited] if inherited else [])])


def load(module: str) -> ModuleType:
    """Import a module of the mesh by name; the SDK itself never depends on it.

    Raises:
        FailedPreconditionError: What services need is not installed.
    """
    add_mesh_path()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in SERVER_PACKAGES | {"services", "compose"}:
            raise
        raise FailedPreconditionError(
            f'running services needs more packages ({missing} is missing): pip install "llama-stack-mesh[server,local]"'
        ) from error
