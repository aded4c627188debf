"""Decide what runs where on one machine: processes, sockets, ports."""

import hashlib
import importlib.util
import os
import socket
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.runtime.config import DEFAULT_PORTS, ConfigError, StackConfig
from services.runtime.listen import MAX_SOCKET_PATH
from stack_client.home import Home

ENGINES = ("inference", "gateway")
"""Services that get a process of their own, for they keep an event loop busy; all others share one."""


@dataclass(frozen=True, kw_only=True)
class ProcessPlan:
    """One process."""

    name: str
    """Its name: the service's, or `services` when it hosts several."""
    services: Sequence[str]
    """What it hosts, as `stack serve` takes it."""
    overlay: dict[str, Any]
    """What is laid over the configuration file for it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole stack on this machine."""

    processes: Sequence[ProcessPlan]
    """What to run."""
    addresses: dict[str, list[str]]
    """Where each local service will listen, by name; the first is preferred."""


def make_plan(config: StackConfig, *, home: Home, groups: Sequence[Sequence[str]]) -> Plan:
    """Choose processes, sockets and ports that clash with nothing.

    Args:
        config: The user's configuration; services with an address in it run elsewhere and are not started.
        home: The stack's folder.
        groups: The services of each process; empty is the default: every engine alone, the rest together.
    """
    chosen = groups or default_groups(config)
    names = [short_name(service) for group in chosen for service in group]
    if not names:
        raise ConfigError(f"{config.file}: nothing to start here: every service has an address elsewhere")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"services named twice: {', '.join(sorted(twice))}")
    sockets = socket_folder(home, names=names)
    ports = choose_ports(names, config=config) if config.runtime.tcp else {}
    addresses = {name: [f"unix:{sockets / name}.sock"] for name in names}
    for name, port in ports.items():
        addresses[name].append(f"{config.runtime.host}:{port}")
    processes: list[ProcessPlan] = []
    for index, group in enumerate(chosen):
        runtime: dict[str, Any] = {"socket_dir": str(sockets), "ports": ports, "telemetry": {}}
        metrics = config.runtime.telemetry.metrics_port
        if metrics:
            runtime["telemetry"]["metrics_port"] = metrics + index
        if config.runtime.telemetry.traces is None and "telemetry" in names:
            runtime["telemetry"]["traces"] = True
        overlay = {"addresses": {name: targets[0] for name, targets in addresses.items()}, "runtime": runtime}
        name = short_name(group[0]) if len(group) == 1 else "services"
        name = f"{name}-{index}" if any(item.name == name for item in processes) else name
        processes.append(ProcessPlan(name=name, services=group, overlay=overlay))
    return Plan(processes=processes, addresses=addresses)


def short_name(service: str) -> str:
    """The service's name without the builder of `name=module:function`."""
    return service.partition("=")[0]


def default_groups(config: StackConfig) -> list[list[str]]:
    """Every service that this version has and that no address places elsewhere."""
    here = [name for name in DEFAULT_PORTS if name not in config.addresses and _exists(name)]
    light = [name for name in here if name not in ENGINES]
    return [[name] for name in here if name in ENGINES] + ([light] if light else [])


def _exists(name: str) -> bool:
    with suppress(ModuleNotFoundError):
        return importlib.util.find_spec(f"services.{name}.__main__") is not None
    return False


def socket_folder(home: Home, *, names: Sequence[str]) -> Path:
    """The home's `run/`, or a short folder under the system's when socket paths there would be too long."""
    longest = max(len(os.fsencode(home.run / f"{name}.sock")) for name in names)
    if longest <= MAX_SOCKET_PATH:
        return home.run
    key = hashlib.sha256(os.fsencode(home.path)).hexdigest()[:12]
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"llama-stack-{os.getuid()}-{key}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise ConfigError(f"{folder} belongs to another user; give a shorter --home")
    folder.chmod(0o700)
    return folder


def choose_ports(names: Sequence[str], *, config: StackConfig) -> dict[str, int]:
    """The configured port of each service, else its default when free, else a free one."""
    ports: dict[str, int] = {}
    with ExitStack() as held:  # all are held until all are chosen, so that no two get the same
        for name in names:
            wished = config.runtime.ports.get(name)
            if wished:
                ports[name] = wished  # the user's choice; if it is taken, the service says so
                continue
            default = 0 if wished == 0 else DEFAULT_PORTS.get(name, 0)
            ports[name] = _hold(default, host=config.runtime.host, held=held)
    return ports


def _hold(port: int, *, host: str, held: ExitStack) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in (port, 0):
        probe = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
        try:
            probe.bind((host, candidate))
        except OSError:
            continue
        return int(probe.getsockname()[1])
    raise ConfigError(f"runtime.host: no TCP port can be opened on {host}")
