"""Health, inspection, drain, sockets, ports, certificates, monitoring."""

import asyncio
import dataclasses
import datetime as dt
import ipaddress
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from llamastack import v1
from services.runtime.config import RuntimeConfig, TelemetryConfig, TlsConfig
from services.runtime.listen import ListenError, open_channel
from services.runtime.process import drain
from stack_client.errors import from_rpc_error
from tests.runtime.echo import ECHO, Host, Running, multi, unary

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def health(running: Running) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(running.channel)
    return stub


async def watched(call: Any) -> AsyncIterator[Any]:
    """The rest of a stream that was begun with `read`."""
    while hasattr(message := await call.read(), "status"):
        yield message


def inspect(running: Running) -> Any:
    stub: Any = v1.InspectServiceStub(running.channel)
    return stub


@pytest.mark.parametrize("name", ["", ECHO, "llamastack.v1.InspectService"])
async def test_health_watch_follows_readiness_for_every_service_name(host: Host, name: str) -> None:
    async with host() as running:
        watch = health(running).Watch(health_pb2.HealthCheckRequest(service=name))
        assert (await watch.read()).status == SERVING
        running.echo.readiness.waiting("loading m")
        assert (await watch.read()).status == NOT_SERVING
        running.echo.readiness.ready()
        assert (await watch.read()).status == SERVING
        running.echo.readiness.failed("out of memory")
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()


async def test_health_of_an_unknown_service_is_not_found(host: Host) -> None:
    async with host() as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(running).Check(health_pb2.HealthCheckRequest(service="no.Such"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_inspect_tells_state_reason_details_and_routes(host: Host) -> None:
    async with host() as running:
        running.echo.readiness.details["models"] = "tiny"
        running.echo.readiness.waiting("loading tiny")
        status = await inspect(running).GetStatus(v1.GetStatusRequest())
        assert (status.service, status.state, status.waiting_for) == (
            "echo",
            v1.SERVICE_STATE_STARTING,
            "loading tiny",
        )
        assert status.details["models"] == "tiny"
        assert list(status.addresses) == running.hosted.addresses
        assert ECHO in status.grpc_services
        answer = await inspect(running).GetHealth(v1.GetHealthRequest())
        assert answer.status == v1.HEALTH_STATUS_ERROR
        running.echo.readiness.ready()
        answer = await inspect(running).GetHealth(v1.GetHealthRequest())
        assert answer.status == v1.HEALTH_STATUS_OK
        routes = await inspect(running).ListRoutes(v1.ListRoutesRequest())
        assert "/llamastack.v1.InspectService/GetStatus" in {route.route for route in routes.data}
        version = await inspect(running).GetVersion(v1.GetVersionRequest())
        assert version.version == status.version != ""


async def test_reflection_lists_services_only_when_asked_for(host: Host) -> None:
    async def listed(running: Running) -> set[str]:
        channel: Any = running.channel
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        return {item.name for item in (await call.read()).list_services_response.service}

    async with host(reflection=True) as running:
        assert "llamastack.v1.InspectService" in await listed(running)
    async with host() as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await listed(running)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_drain_says_not_serving_lets_calls_finish_and_tells_streams(host: Host) -> None:
    async with host() as running:
        watch = health(running).Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == SERVING
        held = unary(running.channel, "Unary")(StringValue(value="held"))
        await running.echo.entered.wait()
        stream = multi(running.channel, "Stream", shape="unary_stream")(StringValue(value="draining"))
        assert (await stream.read()).value == "first"
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(drain([running.hosted]))
            assert (await watch.read()).status == NOT_SERVING
            assert not [message async for message in watched(watch)]
            assert (await stream.read()).value == "draining"
            running.echo.release.set()
            assert (await held).value == "held"


async def test_calls_that_outlive_the_grace_are_cut_off_with_a_reason(host: Host) -> None:
    async with host(drain_grace_seconds=0.1) as running:
        stuck = unary(running.channel, "Unary")(StringValue(value="forever"))
        await running.echo.entered.wait()
        async with asyncio.timeout(20):
            await drain([running.hosted])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stuck
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert running.echo.seen[-1] == "cancelled"


async def test_socket_and_port_serve_the_same_service(host: Host, tmp_path: Path) -> None:
    async with host(socket_dir=tmp_path / "s") as running:
        kinds = []
        for address in running.hosted.addresses:
            async with open_channel(address, config=RuntimeConfig()) as channel:
                answer = await unary(channel, "Unary")(StringValue(value="hi"))
                kinds.append((address.split(":")[0], answer.value))
        assert kinds == [("unix", "hi"), ("127.0.0.1", "hi")]
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "s" / "echo.sock").exists()


async def test_two_servers_on_one_port_are_refused(host: Host) -> None:
    async with host() as running:
        port = int(running.address.rsplit(":", 1)[1])
        with pytest.raises(ListenError, match=rf"echo: cannot listen on 127\.0\.0\.1:{port}"):
            async with host(ports={"echo": port}):
                pass


async def test_two_servers_on_one_socket_are_refused_and_the_first_lives_on(host: Host, tmp_path: Path) -> None:
    async with host(socket_dir=tmp_path, tcp=False) as running:
        with pytest.raises(ListenError, match=r"echo\.sock belongs to a running process \(pid \d+\)"):
            async with host(socket_dir=tmp_path, tcp=False):
                pass
        assert (await unary(running.channel, "Unary")(StringValue(value="still"))).value == "still"


async def test_a_socket_path_that_is_too_long_is_refused(host: Host, tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="the system allows 107"):
        async with host(socket_dir=tmp_path / ("x" * 100)):
            pass


async def fetch(port: int, path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), body


async def test_monitoring_shows_metrics_liveness_and_readiness(host: Host, unused_tcp_port: int) -> None:
    async with host(telemetry=TelemetryConfig(metrics_port=unused_tcp_port)) as running:
        await unary(running.channel, "Unary")(StringValue(value="hi"))
        with pytest.raises(grpc.aio.AioRpcError):
            await unary(running.channel, "Unary")(StringValue(value="missing"))
        status, text = await fetch(unused_tcp_port, "/metrics")
        assert status == 200
        assert 'rpc_server_calls_total{code="OK",method="/test.Echo/Unary"} 1.0' in text
        assert 'rpc_server_calls_total{code="NOT_FOUND",method="/test.Echo/Unary"} 1.0' in text
        assert 'rpc_server_active_calls{method="/test.Echo/Unary"} 0.0' in text
        assert (await fetch(unused_tcp_port, "/livez"))[0] == 200
        assert (await fetch(unused_tcp_port, "/readyz"))[0] == 200
        running.echo.readiness.waiting("loading tiny")
        assert await fetch(unused_tcp_port, "/readyz") == (503, "echo: starting loading tiny\n")
        assert (await fetch(unused_tcp_port, "/nothing"))[0] == 404


async def test_client_pings_during_a_long_call_are_not_punished(host: Host) -> None:
    # A server without our settings closes the connection with too_many_pings after the third.
    options = [("grpc.keepalive_time_ms", 1000), ("grpc.http2.max_pings_without_data", 0)]
    options.append(("grpc.keepalive_permit_without_calls", 1))
    async with host() as running, grpc.aio.insecure_channel(running.address, options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel, "Unary")(StringValue(value="forever"), timeout=6)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


class Authority:
    """A certificate authority for tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.certificate = self.sign(self.name, self.key.public_key(), ca=True)
        self.ca = self.write("ca.pem", self.certificate.public_bytes(serialization.Encoding.PEM))

    def sign(self, name: x509.Name, public: ec.EllipticCurvePublicKey, *, ca: bool) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = x509.CertificateBuilder(subject_name=name, issuer_name=self.name, public_key=public)
        builder = builder.serial_number(x509.random_serial_number()).add_extension(names, critical=False)
        builder = builder.not_valid_before(now - dt.timedelta(hours=1))
        builder = builder.not_valid_after(now + dt.timedelta(hours=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        return builder.sign(self.key, hashes.SHA256())

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def issue(self, who: str) -> TlsConfig:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, who)])
        certificate = self.sign(name, key.public_key(), ca=False).public_bytes(serialization.Encoding.PEM)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return TlsConfig(cert=self.write(f"{who}.pem", certificate), key=self.write(f"{who}.key", pem), ca=self.ca)


async def test_mutual_tls_admits_our_certificates_and_refuses_callers_without(host: Host, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, client = authority.issue("server"), authority.issue("client")
    async with host(tls=server) as running:
        async with open_channel(running.address, config=RuntimeConfig(tls=client)) as channel:
            assert (await unary(channel, "Unary")(StringValue(value="hi"))).value == "hi"
        anonymous = grpc.ssl_channel_credentials(authority.ca.read_bytes())
        for credentials in (anonymous, None):
            channel = (
                grpc.aio.secure_channel(running.address, credentials)
                if credentials
                else grpc.aio.insecure_channel(running.address)
            )
            async with channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await unary(channel, "Unary")(StringValue(value="hi"), timeout=20)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_tenant_is_named_by_callers_whose_certificate_was_asked_for(host: Host, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, client = authority.issue("server"), authority.issue("client")
    named = (("x-tenant", "acme"),)
    async with host(tls=server) as running, open_channel(running.address, config=RuntimeConfig(tls=client)) as channel:
        assert (await unary(channel, "Unary")(StringValue(value="tenant"), metadata=named)).value == "acme"
    anybody = dataclasses.replace(server, require_client=False)
    async with host(tls=anybody) as running, open_channel(running.address, config=RuntimeConfig(tls=client)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel, "Unary")(StringValue(value="tenant"), metadata=named)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_rotated_certificate_is_used_without_a_restart(host: Host, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "new")
    server, client = authority.issue("server"), other.issue("client")
    async with host(tls=server) as running:
        fresh = other.issue("server")
        for old, new in ((server.cert, fresh.cert), (server.key, fresh.key), (server.ca, fresh.ca)):
            old.write_bytes(new.read_bytes())
        async with open_channel(running.address, config=RuntimeConfig(tls=client)) as channel:
            assert (await unary(channel, "Unary")(StringValue(value="hi"))).value == "hi"
