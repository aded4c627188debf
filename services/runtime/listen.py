"""Where a service listens: unix socket with a lock, TCP port, credentials, and the grpc settings of both ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

from services.runtime.config import DEFAULT_PORTS, OPTIONAL_PORTS, ConfigError, RuntimeConfig, TlsConfig

MAX_SOCKET_PATH = 107
"""Bytes that Linux allows for the path of a unix socket."""

Option = tuple[str, Any]


class ListenError(ConfigError):
    """A port or socket that cannot be opened; the message names it and who may hold it."""


def server_options(config: RuntimeConfig) -> list[Option]:
    """Settings of every server. grpc ignores unknown keys silently, so tests check each by its effect."""
    return [
        ("grpc.so_reuseport", 0),  # else Linux lets two servers share one port and each gets half the calls
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # clients ping every 30 s during a long prefill
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        # The message size interceptor enforces the limit with a reason of ours; this is the wall behind it.
        ("grpc.max_receive_message_length", config.max_message_bytes * 8),
        ("grpc.max_send_message_length", -1),
    ]


def channel_options(config: RuntimeConfig) -> list[Option]:
    """Settings of every channel to another service."""
    return [
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]


def server_credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    """Mutual TLS that reads the certificate files at every handshake, so that rotation needs no restart."""

    def current() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(_pem(tls.key), _pem(tls.cert))], root_certificates=_pem(tls.ca)
        )

    return grpc.dynamic_ssl_server_credentials(current(), current, require_client_authentication=tls.require_client)


def open_channel(
    address: str,
    *,
    config: RuntimeConfig,
    interceptors: list[grpc.aio.ClientInterceptor] | None = None,
    extra: Sequence[Option] = (),
) -> grpc.aio.Channel:
    """A channel to `unix:/path` or `host:port` with the mesh's settings and `extra`, over TCP with certificates."""
    options = [*channel_options(config), *extra]
    if address.startswith("unix:"):
        local = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
        return grpc.aio.secure_channel(address, local, options=options, interceptors=interceptors)
    if config.tls is None:
        return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)
    tls = config.tls
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    credentials = grpc.ssl_channel_credentials(_pem(tls.ca), _pem(tls.key), _pem(tls.cert))
    return grpc.aio.secure_channel(address, credentials, options=options, interceptors=interceptors)


@contextlib.contextmanager
def bind(server: grpc.aio.Server, *, name: str, config: RuntimeConfig, address: str | None) -> Iterator[list[str]]:
    """Open the socket and the port of a service; yields the targets to dial, and holds the socket's lock meanwhile.

    Args:
        server: The service's server, not started yet.
        name: The service's name.
        config: Says which of the two to open.
        address: The service's entry in `addresses`, which fixes socket path or port.

    Raises:
        ListenError: The port or socket is taken, or the path is too long.
    """
    targets: list[str] = []
    with contextlib.ExitStack() as held:
        path = socket_path(name, config=config, address=address)
        if path is not None:
            held.enter_context(_locked(path, name=name))
            server.add_secure_port(f"unix:{path}", grpc.local_server_credentials(grpc.LocalConnectionType.UDS))
            targets.append(f"unix:{path}")
        if config.tcp:
            targets.append(_bind_tcp(server, name=name, config=config, address=address))
        yield targets


def socket_path(name: str, *, config: RuntimeConfig, address: str | None) -> Path | None:
    """The service's unix socket, or None."""
    if address and address.startswith("unix:"):
        return Path(address.removeprefix("unix:"))
    return config.socket_dir / f"{name}.sock" if config.socket_dir else None


def port_of(name: str, *, config: RuntimeConfig, address: str | None) -> int:
    """The service's TCP port: set, else from its address, else the default, else any free one."""
    if name in config.ports:
        return config.ports[name]
    if address and not address.startswith("unix:"):
        with contextlib.suppress(ValueError):
            port = urlsplit(f"//{address}").port
            if port:
                return port
        raise ConfigError(f'addresses.{name}: "{address}" has no port; write host:port or unix:/path')
    return {**DEFAULT_PORTS, **OPTIONAL_PORTS}.get(name, 0)


def _bind_tcp(server: grpc.aio.Server, *, name: str, config: RuntimeConfig, address: str | None) -> str:
    port = port_of(name, config=config, address=address)
    host = f"[{config.host}]" if ":" in config.host else config.host
    try:
        if config.tls is None:
            bound = server.add_insecure_port(f"{host}:{port}")
        else:
            bound = server.add_secure_port(f"{host}:{port}", server_credentials(config.tls))
    except RuntimeError as error:
        raise ListenError(
            f"{name}: cannot listen on {host}:{port}; another process has the port. Stop it, or set "
            f"runtime.ports.{name} to a free port (0 takes any)"
        ) from error
    return f"{host}:{bound}"


@contextlib.contextmanager
def _locked(path: Path, *, name: str) -> Iterator[None]:
    """Own a socket path for life: without the lock a second server would delete the first one's socket."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ListenError(
            f"{name}: the socket path {path} has {len(os.fsencode(path))} bytes, the system allows {MAX_SOCKET_PATH}; "
            "set runtime.socket_dir to a shorter folder"
        )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 20, 0).decode().strip() or "unknown"
            raise ListenError(
                f"{name}: the socket {path} belongs to a running process (pid {holder}); stop it, or set another "
                "runtime.socket_dir"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        path.unlink(missing_ok=True)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"runtime.tls: {path} cannot be read: {error.strerror}") from error
