"""Tokens of a real identity provider on this machine."""

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.gateway.keys import AuthConfig, JwtConfig, make_authenticator
from services.gateway.keys.fetching import MAX_BYTES, fetch_json
from services.gateway.keys.jwks import FRESH_SECONDS, KEPT_SECONDS, PAUSE_SECONDS, KeySet
from services.gateway.keys.tokens import Tokens
from services.gateway.principal import Principal
from services.runtime.config import ConfigError, read_config
from stack_client.errors import AuthenticationError, UnavailableError
from tests.gateway.keys.issuer import AUDIENCE, Issuer, ec_key, public, rsa_key, running_issuer
from tests.gateway.keys.node import KeysMesh

ONE, TWO = ec_key(), ec_key()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running_issuer() as running:
        running.have(one=ONE)
        yield running


def config(issuer: Issuer, **fields: Any) -> JwtConfig:
    return JwtConfig(issuer=issuer.url, **{"audience": AUDIENCE, **fields})


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.moment = 0.0

    def __call__(self) -> float:
        return self.moment


def timed(issuer: Issuer, clock: Clock) -> Tokens:
    return Tokens(config(issuer), keys=KeySet(lambda: fetch_json(f"{issuer.url}/jwks"), clock=clock), clock=clock)


async def test_a_token_is_taken_with_keys_found_by_discovery(issuer: Issuer) -> None:
    tokens = Tokens(config(issuer, requests_per_minute=5, tokens_per_minute=7))
    for _ in range(3):
        principal = await tokens.verify(issuer.token("one", scope="openid inference files"))
    assert principal == Principal(
        key_id=f"{issuer.url}#ann",
        scopes=frozenset({"inference", "files"}),
        requests_per_minute=5,
        tokens_per_minute=7,
    )
    assert issuer.asked == ["/.well-known/openid-configuration", "/jwks"]


@pytest.mark.parametrize(
    ("algorithm", "key"), [("RS256", rsa_key()), ("ES256", ec_key()), ("EdDSA", ed25519.Ed25519PrivateKey.generate())]
)
async def test_signatures_of_every_usual_kind_are_taken(issuer: Issuer, algorithm: str, key: Any) -> None:
    issuer.have(one=ONE, two=key)
    tokens = Tokens(config(issuer, jwks_url=f"{issuer.url}/jwks"))
    assert await tokens.verify(issuer.token("two", algorithm=algorithm))
    issuer.have(two=key)
    unnamed = Tokens(config(issuer))
    assert await unnamed.verify(issuer.token("", algorithm=algorithm, key=key)), "one key needs no name"


async def test_keys_are_read_from_a_file(issuer: Issuer, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [{"kty": "strange"}, "no key", public(ONE, "one")]}))
    assert await Tokens(config(issuer, jwks_file=file)).verify(issuer.token("one"))
    assert not issuer.asked
    file.write_text("[]")
    with pytest.raises(UnavailableError, match=r"jwks\.json is no JSON object"):
        await Tokens(config(issuer, jwks_file=file)).verify(issuer.token("one"))


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"exp": 1}, "expired"),
        ({"nbf": 99_999_999_999}, "not valid yet"),
        ({"aud": "another"}, "another audience"),
        ({"aud": None}, "no `aud`"),
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"iss": None}, "no `iss`"),
        ({"exp": None}, "no `exp`"),
        ({"sub": None}, "no `sub`"),
        ({"sub": ""}, "`sub` is empty"),
        ({"sub": "x" * 300}, "256"),
        ({"sub": 5}, "damaged"),
        ({"exp": "soon"}, "damaged"),
        ({"org": None}, "no `org`"),
        ({"org": 5}, "no `org`"),
        ({"org": "a b"}, "no tenant's name"),
    ],
)
async def test_a_token_with_a_wrong_claim_is_refused(issuer: Issuer, claims: dict[str, Any], words: str) -> None:
    tokens = Tokens(config(issuer, tenant_claim="org"))
    assert (await tokens.verify(issuer.token("one", org="acme"))).tenant == "acme"
    with pytest.raises(AuthenticationError, match=words):
        await tokens.verify(issuer.token("one", **{"org": "acme", **claims}))


def unsigned(issuer: Issuer, alg: str) -> str:
    header, payload = {"alg": alg, "kid": "one"}, {"iss": issuer.url, "aud": AUDIENCE, "sub": "ann", "exp": 99**6}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (header, payload)]
    return ".".join([*parts, ""])


async def test_forged_tokens_are_refused(issuer: Issuer) -> None:
    tokens = Tokens(config(issuer))
    good = issuer.token("one")
    stolen = ONE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    raw = base64.urlsafe_b64encode(stolen).decode()
    forged = [
        unsigned(issuer, "none"),
        unsigned(issuer, "None"),
        unsigned(issuer, "ES256"),
        issuer.token("one", key=TWO),
        issuer.token("one", key=raw, algorithm="HS256"),
        issuer.token("one", headers={"crit": ["x"], "x": 1}),
        issuer.token("one", key=rsa_key(), algorithm="RS256"),
        issuer.token("one", key=TWO, headers={"jwk": public(TWO, "one")}),
        f"{good[:-4]}AAAA",
        good.rsplit(".", 1)[0] + ".",
        "a.b.c",
        "..",
        "no token",
        "[" * 10_000 + ".x.y",
        base64.urlsafe_b64encode(b"[" * 9_000).decode() + ".x.y",
        "x" * 20_000,
    ]
    for token in forged:
        with pytest.raises(AuthenticationError) as caught:
            await tokens.verify(token)
        assert len(token) < 10 or token not in caught.value.message
    assert await tokens.verify(good)


async def test_a_short_rsa_key_is_not_trusted(issuer: Issuer) -> None:
    short = rsa_key(1024)
    issuer.have(short=short)
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = issuer.token("short", algorithm="RS256")
    with pytest.raises(AuthenticationError):
        await Tokens(config(issuer)).verify(token)


async def test_a_key_for_encryption_or_another_algorithm_verifies_nothing(issuer: Issuer) -> None:
    for facts in ({"use": "enc"}, {"alg": "ES384"}):
        issuer.answer("/jwks", {"keys": [public(ONE, "one", **facts)]})
        with pytest.raises(AuthenticationError, match="does not have"):
            await Tokens(config(issuer)).verify(issuer.token("one"))


async def test_scopes_come_from_a_list_or_by_a_map(issuer: Issuer) -> None:
    claims: dict[str, Any] = {"scope": None, "realm": {"roles": ["ops", "user", 5]}, "https://x.y/scp": ["read"]}
    token = issuer.token("one", **claims)
    assert (await Tokens(config(issuer)).verify(token)).scopes == frozenset()
    dotted = Tokens(config(issuer, scopes_claim="https://x.y/scp"))
    assert (await dotted.verify(token)).scopes == {"read"}
    mapped = Tokens(config(issuer, scopes_claim="realm.roles", scope_map={"ops": ("admin",), "user": ("read",)}))
    assert (await mapped.verify(token)).scopes == {"admin", "read"}
    assert not (await Tokens(config(issuer, scopes_claim="scope.deep")).verify(token)).scopes


async def test_a_new_key_is_found_and_one_that_was_withdrawn_is_not_for_long(issuer: Issuer) -> None:
    clock = Clock()
    tokens = timed(issuer, clock)
    old = issuer.token("one")
    await tokens.verify(old)
    issuer.have(two=TWO)
    with pytest.raises(AuthenticationError):
        await tokens.verify(issuer.token("two"))  # read a moment ago
    clock.moment += PAUSE_SECONDS
    assert await tokens.verify(issuer.token("two"))
    with pytest.raises(AuthenticationError):
        await tokens.verify(old)
    issuer.have(one=ONE)
    clock.moment += FRESH_SECONDS
    with pytest.raises(AuthenticationError):
        await tokens.verify(issuer.token("two", key=TWO))


async def test_a_verified_token_is_not_remembered_beyond_its_end(issuer: Issuer) -> None:
    tokens = Tokens(config(issuer, leeway_seconds=300))
    token = issuer.token("one", exp=int(time.time()) - 297)  # within the leeway for 2 seconds
    await tokens.verify(token)
    async with asyncio.timeout(30):
        while await is_taken(tokens, token):
            await asyncio.sleep(0.01)


async def is_taken(tokens: Tokens, token: str) -> bool:
    try:
        await tokens.verify(token)
    except AuthenticationError as error:
        if "expired" in error.message:
            return False
        raise
    return True


async def test_forged_ids_of_keys_do_not_make_us_read_more_often(issuer: Issuer) -> None:
    clock = Clock()
    tokens = timed(issuer, clock)
    for number in range(50):
        with pytest.raises(AuthenticationError):
            await tokens.verify(issuer.token(f"forged{number}", key=TWO))
    assert len(issuer.asked) == 1
    clock.moment += PAUSE_SECONDS
    for number in range(50):
        with pytest.raises(AuthenticationError):
            await tokens.verify(issuer.token(f"forged{number}", key=TWO))
    assert len(issuer.asked) == 2
    assert await tokens.verify(issuer.token("one"))


async def test_known_keys_are_good_for_an_hour_while_the_provider_is_away(issuer: Issuer) -> None:
    clock = Clock()
    tokens = timed(issuer, clock)
    await tokens.verify(issuer.token("one"))
    issuer.answers["/jwks"] = 500
    clock.moment = KEPT_SECONDS - 1
    assert await tokens.verify(issuer.token("one"))
    assert len(issuer.asked) == 2
    clock.moment = KEPT_SECONDS
    with pytest.raises(UnavailableError, match="status 500"):
        await tokens.verify(issuer.token("one"))
    assert len(issuer.asked) == 2, "it was asked a second ago"
    issuer.have(one=ONE)
    clock.moment += PAUSE_SECONDS
    assert await tokens.verify(issuer.token("one"))


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        ("/.well-known/openid-configuration", 404, "status 404"),
        ("/.well-known/openid-configuration", 302, "status 302"),
        ("/.well-known/openid-configuration", b"<html>", "no JSON"),
        ("/.well-known/openid-configuration", b'{"issuer": "https://evil.example"}', "another issuer"),
        ("/jwks", b"[" * 100_000, "no JSON"),
        ("/jwks", b" " * (MAX_BYTES + 1), "more than"),
        ("/jwks", b'{"keys": {}}', "no list"),
    ],
)
async def test_a_provider_that_answers_badly_is_named(
    issuer: Issuer, path: str, answer: bytes | int, words: str
) -> None:
    issuer.answers[path] = answer
    with pytest.raises(UnavailableError, match=words) as caught:
        await Tokens(config(issuer)).verify(issuer.token("one"))
    assert caught.value.http_status == 503


async def test_keys_that_discovery_names_in_plain_text_elsewhere_are_not_read(issuer: Issuer) -> None:
    document = {"issuer": issuer.url, "jwks_uri": "http://keys.example/jwks"}
    issuer.answer("/.well-known/openid-configuration", document)
    with pytest.raises(UnavailableError, match="https"):
        await Tokens(config(issuer)).verify(issuer.token("one"))


async def test_a_gateway_takes_keys_and_tokens_beside_each_other(issuer: Issuer, small: KeysMesh) -> None:
    auth = AuthConfig(jwt=config(issuer, tenant_claim="org"))
    for required in (True, False):
        authenticator = make_authenticator(auth, keys=small.keys, required=required)
        made = await small.create(tenant="by-key")
        assert (await authenticator.authenticate(f"Bearer {made.secret}")).tenant == "by-key"
        token = issuer.token("one", org="by-token")
        assert (await authenticator.authenticate(f"Bearer {token}")).tenant == "by-token"
        with pytest.raises(AuthenticationError, match="expired"):
            await authenticator.authenticate(f"Bearer {issuer.token('one', org='by-token', exp=1)}")
    assert (await authenticator.authenticate("Bearer anything")).tenant == ""


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"issuer": ""}, "jwt.issuer: is empty"),
        ({"issuer": "http://idp.example"}, "jwt.issuer: give an https URL"),
        ({"issuer": "us"}, "jwt.issuer: give an https URL"),
        ({"audience": ""}, "jwt.audience: is empty"),
        ({"audience": []}, "jwt.audience: is empty"),
        ({"jwks_url": "ftp://idp.example/keys"}, "jwt.jwks_url: give an https URL"),
        ({"jwks_url": "https://a:b@idp.example/keys"}, "jwt.jwks_url: has a user"),
        ({"jwks_url": "https://idp.example/keys", "jwks_file": "keys.json"}, "not both"),
        ({"algorithms": ["none"]}, "'none' is not taken"),
        ({"algorithms": ["HS256"]}, "'HS256' is not taken"),
        ({"algorithms": []}, "nothing is not taken"),
        ({"scope_map": {"x": ["root"]}}, "scope_map.x: no scope 'root'"),
        ({"scopes_claim": ""}, "scopes_claim"),
        ({"leeway_seconds": 1000}, "leeway_seconds"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"secret": "x"}, "unknown key"),
    ],
)
def test_a_configuration_that_would_let_others_in_is_refused(fields: dict[str, Any], words: str) -> None:
    good = {"issuer": "https://idp.example", "audience": ["a", "b"]}
    assert read_config(AuthConfig, {"jwt": good}).jwt is not None
    with pytest.raises(ConfigError, match=words):
        read_config(AuthConfig, {"jwt": {**good, **fields}})
