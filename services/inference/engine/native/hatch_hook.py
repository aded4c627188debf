"""Builds the kernels while the package is installed or made into a wheel, where a compiler is present."""

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).parent


class KernelsHook(BuildHookInterface[Any]):  # type: ignore[misc]
    """Compiles, and marks the wheel as one for this kind of machine when there is something compiled in it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files."""
        # By path: what is being installed cannot be imported yet.
        spec = importlib.util.spec_from_file_location("kernels_build", HERE / "build.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.app.display_info(module.build())
        if any(HERE.glob("kernels-*.so")) and version != "editable":
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform()}"


def _platform() -> str:
    """Wheel tag of this machine; the libraries need no Python of a certain version."""
    from packaging.tags import platform_tags  # noqa: PLC0415 (of the build environment)

    return next(platform_tags())
