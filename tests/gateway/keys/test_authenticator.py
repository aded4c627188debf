"""What a request must send, and what it is told otherwise."""

import logging

import pytest

from services.gateway.keys import AuthConfig, Authenticator, JwtConfig, make_authenticator
from services.gateway.keys.form import make
from services.gateway.principal import Principal
from services.runtime.config import ConfigError
from stack_client.errors import AuthenticationError
from tests.gateway.keys.node import KeysMesh


@pytest.mark.parametrize(
    ("authorization", "words"),
    [
        ("", "no API key was sent"),
        ("   ", "no API key was sent"),
        ("Bearer", "malformed"),
        ("Bearer   ", "malformed"),
        ("Basic YTpi", "malformed"),
        ("lsk_0123456789abcdef", "malformed"),
        ("Bearer sk-proj-123", "no API key of this stack"),
        ("Bearer lsk_", "cut off"),
        ("Bearer lsk_0123456789abcdef_0123", "cut off"),
        ("Bearer LSK_0123456789abcdef_" + "0" * 64, "no API key of this stack"),
        ("Bearer lsk_0123456789abcdef_" + "0" * 64, "unknown"),
        ("Bearer lsk_0123456789abcdef_" + "0" * 64 + " x", "cut off"),
        ("Bearer \u0661" * 20, "no API key of this stack"),
    ],
)
async def test_a_wrong_header_is_told_what_is_wrong(small: KeysMesh, authorization: str, words: str) -> None:
    with pytest.raises(AuthenticationError, match=words) as caught:
        await Authenticator(small.keys).authenticate(authorization)
    assert caught.value.reason == "UNAUTHENTICATED"
    assert caught.value.http_status == 401


async def test_a_wrong_secret_is_told_the_same_as_an_unknown_id(small: KeysMesh) -> None:
    made, authenticator = await small.create(), Authenticator(small.keys)
    await small.revoke(made.key.id)
    told = set()
    for text in (make().text, made.secret[:-1] + ("0" if made.secret[-1] != "0" else "1")):
        with pytest.raises(AuthenticationError) as caught:
            await authenticator.authenticate(f"Bearer {text}")
        told.add(caught.value.message)
    assert len(told) == 1, "who has not the secret does not learn that the key was revoked"


async def test_no_error_and_no_log_quotes_the_secret(small: KeysMesh, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made, authenticator = await small.create(), Authenticator(small.keys)
    await authenticator.authenticate(f"Bearer {made.secret}")
    await small.revoke(made.key.id)
    shown = []
    for text in (made.secret, made.secret[:-1], f"{made.secret}0", make().text):
        with pytest.raises(AuthenticationError) as caught:
            await authenticator.authenticate(f"Bearer {text}")
        shown.append(str(caught.value))
    everything = caplog.text + " ".join(shown) + repr(authenticator) + repr(small.keys)
    assert made.secret.rsplit("_", 1)[1][:16] not in everything


async def test_an_open_gateway_takes_anything_but_a_bad_key_of_its_own(small: KeysMesh) -> None:
    authenticator = Authenticator(small.keys, required=False)
    for authorization in ("", "Bearer", "Bearer none", "Bearer sk-a.b.c", "Basic YTpi"):
        assert await authenticator.authenticate(authorization) == Principal()
    made = await small.create(tenant="acme")
    assert (await authenticator.authenticate(f"Bearer {made.secret}")).tenant == "acme"
    await small.revoke(made.key.id)
    with pytest.raises(AuthenticationError, match="revoked"):
        await authenticator.authenticate(f"Bearer {made.secret}")


async def test_a_missing_file_with_the_keys_of_tokens_is_found_at_the_start(small: KeysMesh) -> None:
    jwt = JwtConfig(issuer="us", audience="stack", jwks_file=small.home / "missing.json")
    with pytest.raises(ConfigError, match=r"missing\.json is no file"):
        make_authenticator(AuthConfig(jwt=jwt), keys=small.keys, required=True)
