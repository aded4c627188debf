"""The configuration file of a stack: addresses, the runtime's settings, and one section per service."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from services.runtime.reader import ConfigError, load_yaml, read_config, suggestion
from stack_client.addresses import DEFAULT_PORTS, OPTIONAL_PORTS

__all__ = [
    "DEFAULT_PORTS",
    "OPTIONAL_PORTS",
    "ConfigError",
    "RuntimeConfig",
    "StackConfig",
    "TelemetryConfig",
    "TlsConfig",
    "read_config",
    "read_stack",
]

LAST_PORT = 65_535
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class TlsConfig:
    """Certificates; with them every TCP connection of the mesh is mutual TLS."""

    cert: Path
    """PEM file with this process's certificate chain."""
    key: Path
    """PEM file with the private key of `cert`."""
    ca: Path
    """PEM file with the certificates that peers are checked against."""
    require_client: bool = True
    """Refuse callers that show no certificate of `ca`."""
    server_name: str | None = None
    """Name expected in the certificates of other services; unset takes the name from the address dialled."""


@dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    """Where metrics and traces go."""

    metrics_port: int | None = None
    """TCP port for /metrics, /livez and /readyz over HTTP; 0 takes a free one, unset opens none."""
    otlp_endpoint: str | None = None
    """gRPC address of an OpenTelemetry collector, `http://host:4317`; unset sends nothing."""
    traces: bool | None = None
    """Send spans and counted tokens to the telemetry service at `addresses.telemetry`; unset does where `stack up`
    starts that service."""
    sample: float = 1.0
    """Share of the traces that begin in this process which are recorded there, 0 to 1; callers that bring a trace have
    decided themselves."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if not 0 <= self.sample <= 1:
            raise ValueError(f"sample: {self.sample:g} is no share; give 0 to 1")


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How a process serves, independent of what it serves."""

    host: str = "127.0.0.1"
    """Address that TCP ports are opened on."""
    tcp: bool = True
    """Listen on TCP; without it only on unix sockets, which then need `socket_dir`."""
    ports: dict[str, int] = field(default_factory=dict)
    """TCP port by service name; 0 takes a free one; unset takes the port of `addresses`, else the default."""
    socket_dir: Path | None = None
    """Folder for one unix socket per service; created with mode 0700; unset opens none."""
    tls: TlsConfig | None = None
    """Certificates for mutual TLS on TCP; unset serves plain text."""
    allow_insecure: bool = False
    """Permit plain text on addresses other than loopback, for private container networks."""
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    """Where metrics and traces go."""
    reflection: bool = False
    """Serve gRPC reflection, so that grpcurl and the like need no proto files."""
    drain_notice_seconds: float = 0.2
    """Time between NOT_SERVING and closing the door, so that health watchers send their calls elsewhere."""
    drain_grace_seconds: float = 10.0
    """Time that calls in flight have to end after the door is closed."""
    max_message_bytes: int = 16 * 1024 * 1024
    """Largest request and response; larger ones are refused with MESSAGE_TOO_LARGE."""
    default_deadline_seconds: float | None = 600.0
    """Deadline of unary calls whose caller set none; unset means none. Streams get none."""
    deadline_seconds: dict[str, float] = field(default_factory=dict)
    """The same for single methods, streams too, by full name `/llamastack.v1.Inference/ChatCompletion`."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least level that is logged; user text appears at DEBUG only."""
    log_format: Literal["json", "text"] = "text"
    """One JSON object a line, or text for people."""

    def __post_init__(self) -> None:
        """Refuse ports that do not exist; the system would take them modulo 65536."""
        for name, port in self.ports.items():
            if not 0 <= port <= LAST_PORT:
                raise ValueError(f"ports.{name}: {port} is no TCP port; give 0 to {LAST_PORT}")


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """A whole configuration file."""

    file: Path | str
    """Where it was read from, for messages."""
    addresses: dict[str, str] = field(default_factory=dict)
    """Where each service is reached: `host:port` or `unix:/path`, by service name."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """How every process of the stack serves."""
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The settings of each service, read by the service's own dataclass."""

    def section(self, cls: type[Any], *, name: str) -> Any:  # noqa: ANN401 - the caller names the class
        """The section of a service as its dataclass; a missing section is all defaults."""
        return read_config(cls, self.sections.get(name, {}), file=self.file, at=name)


@dataclass(frozen=True, kw_only=True)
class _Fixed:
    """The keys of the file that are not service sections."""

    addresses: dict[str, str] = field(default_factory=dict)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


def read_stack(
    path: Path | None, *, names: Iterable[str] = (), overlay: Mapping[str, Any] | None = None
) -> StackConfig:
    """Read a configuration file.

    Args:
        path: The YAML file; None is all defaults.
        names: Services outside the usual set that may have a section, for example in tests.
        overlay: What a supervisor decided: laid over the file's `addresses` and `runtime`.

    Raises:
        ConfigError: Names file and key.
    """
    file: Path | str = path or "defaults"
    loaded = load_yaml(path) if path else {}
    fixed = {item.name for item in dataclasses.fields(_Fixed)}
    services = {*DEFAULT_PORTS, *OPTIONAL_PORTS, *names}
    for key, value in loaded.items():
        if key in fixed:
            continue
        if key not in services:
            raise ConfigError(f"{file}: {key}: unknown key{suggestion(key, fixed | services)}")
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"{file}: {key}: expected keys and values, found {value!r}")
    known = {key: value for key, value in loaded.items() if key in fixed and value is not None}
    read = read_config(_Fixed, known, file=file)
    if overlay:
        read_config(_Fixed, overlay, file="overlay")
        read = read_config(_Fixed, _merge(known, overlay), file=file)
    sections = {key: value or {} for key, value in loaded.items() if key not in fixed}
    if read.runtime.telemetry.traces and "telemetry" not in read.addresses:
        raise ConfigError(
            f"{file}: runtime.telemetry.traces: addresses.telemetry is missing; say where the service is, or leave "
            "traces out"
        )
    return StackConfig(file=file, addresses=read.addresses, runtime=_checked(read.runtime, file), sections=sections)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _merge(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged


def _checked(runtime: RuntimeConfig, file: Path | str) -> RuntimeConfig:
    """Refuse combinations that would be unsafe or serve nobody."""
    if runtime.tcp and runtime.host not in LOOPBACK and not (runtime.tls or runtime.allow_insecure):
        raise ConfigError(
            f'{file}: runtime.host: "{runtime.host}" is reachable from other machines in plain text; configure '
            "runtime.tls, or set runtime.allow_insecure on a private network"
        )
    if not runtime.tcp and runtime.socket_dir is None:
        raise ConfigError(f"{file}: runtime.tcp: without TCP, runtime.socket_dir must be set")
    return runtime
