"""Start a gRPC process: `run(["agents"], config_path=...)` hosts services until SIGTERM or Ctrl-C.

    python -m services.agents --config stack.yaml

A service's `__main__.py` is two parts: `def build(context: ServiceContext) -> Service`, and

    if __name__ == "__main__":
        sys.exit(main("agents"))
"""

import argparse
import asyncio
import importlib
import json
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from services.runtime.config import DEFAULT_PORTS, OPTIONAL_PORTS, ConfigError, StackConfig, read_stack
from services.runtime.listen import open_channel
from services.runtime.logs import configure_logging
from services.runtime.monitoring import Monitoring
from services.runtime.parents import die_with_parent
from services.runtime.readiness import Readiness
from services.runtime.server import Hosted
from services.runtime.service import Service, ServiceContext
from services.runtime.telemetry import Telemetry

_log = logging.getLogger(__name__)
Build = Callable[[ServiceContext], Service]


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """What a supervisor decided for its child, in a JSON file: laid over `addresses` and `runtime`."""

    values: Mapping[str, Any]
    """The keys of the configuration that it sets."""

    @classmethod
    def read(cls, path: Path | None) -> "Overlay":
        """The file's content; None is nothing."""
        return cls(values=json.loads(path.read_text(encoding="utf-8")) if path else {})


def run(
    names: Sequence[str],
    *,
    config_path: Path | None = None,
    home: Path | None = None,
    overlay: Path | None = None,
    parent: int | None = None,
) -> int:
    """Host services in this process until SIGTERM or Ctrl-C; returns the exit code.

    Args:
        names: Services: a name such as `agents`, or `name=module:function` for a builder elsewhere.
        config_path: The YAML file; None is all defaults.
        home: The stack's folder, for data and cache; None is `~/.llama-stack-mesh`.
        overlay: A supervisor's decisions, see `Overlay`.
        parent: Process id of the supervisor; this process ends with it.
    """
    if parent is not None:
        die_with_parent(parent)
    try:
        builds = {name.partition("=")[0]: find_build(name) for name in names}
        config = read_stack(config_path, names=builds, overlay=Overlay.read(overlay).values)
        configure_logging(config.runtime)
        asyncio.run(_serve(builds, config=config, home=home or Path.home() / ".llama-stack-mesh"))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception:  # noqa: BLE001 - the top of the process
        _log.exception("process failed", extra={"services": list(names)})
        return 1
    return 0


def main(name: str) -> int:
    """The command line of `python -m services.<name>`."""
    parser = argparse.ArgumentParser(prog=f"python -m services.{name}", description=f"Serve {name}.")
    parser.add_argument("--config", type=Path, help="YAML file; without it all defaults")
    parser.add_argument("--home", type=Path, help="folder for data and cache (default ~/.llama-stack-mesh)")
    arguments = parser.parse_args()
    return run([name], config_path=arguments.config, home=arguments.home)


def find_build(name: str) -> Build:
    """The builder of a service: `build` of `services.<name>.__main__`, or what `name=module:function` names."""
    service, _, elsewhere = name.partition("=")
    module, _, function = (elsewhere or f"services.{service}.__main__:build").partition(":")
    try:
        return cast("Build", getattr(importlib.import_module(module), function or "build"))
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the service exists, something that it imports does not
        known = ", ".join([*DEFAULT_PORTS, *OPTIONAL_PORTS])
        raise ConfigError(
            f'no service "{service}"; the mesh has: {known} (not all may be part of this version)'
        ) from error


@asynccontextmanager
async def hosting(builds: Mapping[str, Build], *, config: StackConfig, home: Path) -> AsyncIterator[Sequence[Hosted]]:
    """Run services, each on a server of its own, on this event loop; yields them while they run."""
    telemetry = Telemetry(config=config.runtime.telemetry, process="+".join(builds))
    hosted: list[Hosted] = []
    async with AsyncExitStack() as stack:
        telemetry.start()
        stack.push_async_callback(asyncio.to_thread, telemetry.stop)
        if config.runtime.telemetry.traces:
            # Plain, without what calls hand down: sending telemetry is no part of anybody's trace.
            channel = open_channel(config.addresses["telemetry"], config=config.runtime)
            await stack.enter_async_context(telemetry.recording(channel))
        for name, build in builds.items():
            context = _context(name, config=config, home=home, telemetry=telemetry)
            item = Hosted(context=context, service=build(context))
            await stack.enter_async_context(item.running())
            hosted.append(item)
        port = config.runtime.telemetry.metrics_port
        if port is not None:
            monitoring = Monitoring(telemetry=telemetry, readiness=[item.context.readiness for item in hosted])
            await stack.enter_async_context(monitoring.listening(host=config.runtime.host, port=port))
        yield hosted


async def drain(hosted: Sequence[Hosted]) -> None:
    """Drain all servers at once; spans go out before, for the service that keeps them may be one of these."""
    for telemetry in {item.context.telemetry for item in hosted}:
        await telemetry.flush()
    async with asyncio.TaskGroup() as group:
        for item in hosted:
            group.create_task(item.drain())


async def _serve(builds: Mapping[str, Build], *, config: StackConfig, home: Path) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    running: list[Hosted] = []

    def on_signal() -> None:
        if stop.is_set():  # asked twice: no grace
            for item in running:
                item.cut()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with hosting(builds, config=config, home=home) as hosted:
        running.extend(hosted)
        await stop.wait()
        _log.info("draining", extra={"services": list(builds)})
        await drain(hosted)


def _context(name: str, *, config: StackConfig, home: Path, telemetry: Telemetry) -> ServiceContext:
    data_dir, cache_dir = home / "data" / name, home / "cache"
    for folder in (data_dir, cache_dir):
        folder.mkdir(parents=True, exist_ok=True)
    return ServiceContext(
        name=name,
        config=config,
        data_dir=data_dir,
        cache_dir=cache_dir,
        readiness=Readiness(name=name),
        draining=asyncio.Event(),
        telemetry=telemetry,
    )
