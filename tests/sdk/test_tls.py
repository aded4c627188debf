"""TLS as the runtime serves it: both sides show a certificate."""

import datetime as dt

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from llamastack import v1
from stack_client import StackClient
from stack_client.channel import TlsFiles
from stack_client.errors import UnavailableError
from tests.stacks import StackProcess


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """One certificate that is its own authority, for localhost."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(tz=dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = TlsFiles(ca=folder / "cert.pem", cert=folder / "cert.pem", key=folder / "key.pem")
    files.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


class Models(v1.ModelsServiceServicer):
    async def ListModels(self, request: v1.ListModelsRequest, context: object) -> v1.ListModelsResponse:  # noqa: N802
        return v1.ListModelsResponse(data=[v1.Model(identifier="secret")])


async def test_certificates_open_a_service_that_asks_for_them(tls: TlsFiles) -> None:
    assert tls.key is not None
    authority = tls.ca.read_bytes()
    server = grpc.aio.server()
    credentials = grpc.ssl_server_credentials([(tls.key.read_bytes(), authority)], authority, True)
    port = server.add_secure_port("localhost:0", credentials)
    v1.add_ModelsServiceServicer_to_server(Models(), server)  # type: ignore[abstract] # the rest is not called
    await server.start()
    try:
        async with StackClient({"inference": f"localhost:{port}"}, tls=tls) as client:
            assert [model.identifier for model in await client.models.list()] == ["secret"]
        async with StackClient({"inference": f"localhost:{port}"}, tls=TlsFiles(ca=tls.ca)) as client:
            with pytest.raises(UnavailableError):
                await client.models.list()
        async with StackClient({"inference": f"localhost:{port}"}) as client:
            with pytest.raises(UnavailableError):
                await client.models.list()
    finally:
        await server.stop(None)


async def test_unix_sockets_need_no_certificates(tls: TlsFiles, stack: StackProcess) -> None:
    async with StackClient(stack.addresses, tls=tls) as client:
        assert await client.models.list()
