"""An identity provider over HTTP on this machine."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE = "https://stack.example"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def public(key: PrivateKey, kid: str, **facts: str) -> dict[str, Any]:
    """The public half as its issuer shows it."""
    if isinstance(key, rsa.RSAPrivateKey):
        shown = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        shown = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        shown = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**shown, "kid": kid, **facts}


class Issuer:
    """Its keys, its tokens, and what it was asked.

    Attributes:
        url: Its address, which is its `iss`.
        answers: What it answers by path: bytes with status 200, or a status.
        asked: Paths, in order.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys: dict[str, PrivateKey] = {}
        self.answers: dict[str, bytes | int] = {}
        self.asked: list[str] = []
        self.answer("/.well-known/openid-configuration", {"issuer": url, "jwks_uri": f"{url}/jwks"})

    def answer(self, path: str, document: object) -> None:
        self.answers[path] = json.dumps(document).encode()

    def have(self, **keys: PrivateKey) -> None:
        """Have these keys and no others."""
        self.keys = keys
        self.answer("/jwks", {"keys": [public(key, kid) for kid, key in keys.items()]})

    def token(
        self,
        kid: str,
        *,
        algorithm: str = "ES256",
        key: Any = None,
        headers: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """A token; a claim that is None is left out."""
        moment = int(time.time())
        all_claims = {
            "iss": self.url, "aud": AUDIENCE, "sub": "ann", "iat": moment, "exp": moment + 600, "scope": "inference",
            **claims,
        }  # fmt: skip
        kept = {name: value for name, value in all_claims.items() if value is not None}
        named = {"kid": kid, **(headers or {})} if kid else dict(headers or {})
        return jwt.encode(kept, key or self.keys[kid], algorithm=algorithm, headers=named)


@contextmanager
def running_issuer() -> Iterator[Issuer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            found = issuer.answers.get(self.path, 404)
            body = found if isinstance(found, bytes) else b"{}"
            self.send_response(found if isinstance(found, int) else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Location", "/jwks")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its base's name)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        issuer = Issuer(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()
