"""API keys over gRPC, on both databases."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from llamastack import v1
from services.gateway.keys import Authenticator
from services.gateway.keys.form import parse
from services.gateway.keys.store import Keys
from services.gateway.keys.tables import keys as table
from services.gateway.principal import SCOPES
from stack_client.calls import unary
from stack_client.errors import (
    AuthenticationError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    StackError,
)
from tests.gateway.keys.node import KeysMesh, keys_mesh

LIMITS: dict[str, Any] = {"requests_per_minute": 60, "tokens_per_minute": 10_000}


async def refused(call: Any) -> StackError:
    with pytest.raises(StackError) as caught:
        await unary(call)
    return caught.value


async def test_a_key_lets_its_bearer_in_as_it_was_made(mesh: KeysMesh) -> None:
    made = await mesh.create(tenant="acme", scopes=["tools", "inference", "tools"], **LIMITS)
    principal = await Authenticator(mesh.keys).authenticate(f"Bearer {made.secret}")
    assert principal.key_id == made.key.id
    assert principal.tenant == "acme"
    assert principal.scopes == {"inference", "tools"}
    assert (principal.requests_per_minute, principal.tokens_per_minute) == (60, 10_000)
    assert list(made.key.scopes) == ["inference", "tools"]
    assert made.secret.startswith(f"{made.key.prefix}_")


async def test_a_key_without_limits_and_tenant_has_none(mesh: KeysMesh) -> None:
    made = await mesh.create()
    principal = await Authenticator(mesh.keys).authenticate(f"bearer {made.secret}")
    assert (principal.tenant, principal.requests_per_minute, principal.tokens_per_minute) == ("", None, None)
    assert not made.key.HasField("expires_at")


async def test_the_secret_is_not_kept_and_not_shown_again(mesh: KeysMesh) -> None:
    made = await mesh.create(request_id="once")
    again = await mesh.create(request_id="once")
    assert again.key == made.key
    assert not again.secret
    async with mesh.node.database.read() as connection:
        (row,) = (await connection.execute(sa.select(table))).all()
    random = made.secret.rsplit("_", 1)[1]
    assert random not in repr(tuple(row))
    secret = parse(made.secret)
    assert secret is not None
    assert random not in repr(secret)
    assert random not in str(await mesh.list())


async def test_a_request_id_with_another_body_is_refused(mesh: KeysMesh) -> None:
    await mesh.create(request_id="once")
    error = await refused(mesh.create(request_id="once", name="another"))
    assert error.reason == "REQUEST_ID_REUSED"
    assert (await mesh.create(request_id="once", caller="acme")).secret, "ids are the caller's own"


async def test_concurrent_repeats_make_one_key(mesh: KeysMesh) -> None:
    answers = await asyncio.gather(*(mesh.create(request_id="once") for _ in range(8)))
    assert len({answer.key.id for answer in answers}) == 1
    assert sum(bool(answer.secret) for answer in answers) == 1


async def test_a_revoked_key_is_refused_at_once_and_stays_in_the_list_on_demand(mesh: KeysMesh) -> None:
    made, other = await mesh.create(), await mesh.create()
    authenticator = Authenticator(mesh.keys)
    await authenticator.authenticate(f"Bearer {made.secret}")
    ended = await mesh.revoke(made.key.prefix)
    with pytest.raises(AuthenticationError, match="revoked"):
        await authenticator.authenticate(f"Bearer {made.secret}")
    assert await mesh.revoke(made.key.id) == ended, "a repeat changes nothing"
    assert [key.id for key in (await mesh.list()).data] == [other.key.id]
    everything = (await mesh.list(include_revoked=True)).data
    assert [key.HasField("revoked_at") for key in everything] == [False, True]


async def test_a_revocation_on_another_replica_takes_as_long_as_a_key_is_remembered(postgres_url: str) -> None:
    async with keys_mesh(postgres_url) as one, keys_mesh(postgres_url) as two:
        made = await one.create()
        there = Authenticator(two.keys)
        await there.authenticate(f"Bearer {made.secret}")
        await one.revoke(made.key.id)
        assert (await there.authenticate(f"Bearer {made.secret}")).key_id == made.key.id
        two.node.moment += 3.0
        with pytest.raises(AuthenticationError, match="revoked"):
            await there.authenticate(f"Bearer {made.secret}")


async def test_a_key_that_is_revoked_while_it_is_looked_up_is_not_remembered(small: KeysMesh) -> None:
    made = await small.create()
    found, _ = await asyncio.gather(small.keys.find(made.key.id), small.keys.revoke(made.key.id))
    assert found is not None
    after = await small.keys.find(made.key.id)
    assert after is not None
    assert after.revoked_at is not None


async def test_keys_of_other_tenants_are_neither_seen_nor_revoked_nor_made(mesh: KeysMesh) -> None:
    acme, other = await mesh.create(tenant="acme"), await mesh.create(tenant="other")
    assert [key.id for key in (await mesh.list(caller="acme")).data] == [acme.key.id]
    assert isinstance(await refused(mesh.revoke(other.key.id, caller="acme")), NotFoundError)
    assert isinstance(await refused(mesh.create(caller="acme", tenant="other")), PermissionDeniedError)
    assert isinstance(await refused(mesh.create(caller="acme", scopes=["admin"])), PermissionDeniedError)
    assert isinstance(await refused(mesh.list(caller="acme", tenant="other")), PermissionDeniedError)
    assert (await mesh.create(caller="acme")).key.tenant == "acme"
    assert [key.id for key in (await mesh.list(tenant="other")).data] == [other.key.id]


async def test_lists_come_in_pages_newest_first(mesh: KeysMesh) -> None:
    made = [(await mesh.create(name=f"key {number}")).key.id for number in range(5)]
    seen: list[str] = []
    token = ""
    while True:
        page = await mesh.list(page_size=2, page_token=token)
        seen += [key.id for key in page.data]
        token = page.next_page_token
        if not token:
            break
    assert seen == made[::-1]
    first = await mesh.list(page_size=2)
    error = await refused(mesh.list(page_token=first.next_page_token, include_revoked=True))
    assert error.reason == "INVALID_PAGE_TOKEN"


async def test_when_a_key_was_used_is_written_beside_the_requests(mesh: KeysMesh) -> None:
    made, unused = await mesh.create(), await mesh.create()
    for _ in range(3):
        await Authenticator(mesh.keys).authenticate(f"Bearer {made.secret}")
    assert not any(key.HasField("last_used_at") for key in (await mesh.list()).data)
    await mesh.keys.flush()
    used = {key.id: key.HasField("last_used_at") for key in (await mesh.list()).data}
    assert used == {made.key.id: True, unused.key.id: False}


async def test_the_last_use_is_written_when_the_service_stops(small: KeysMesh) -> None:
    made = await small.create()
    async with Keys(small.node.database).running() as keys:
        await Authenticator(keys).authenticate(f"Bearer {made.secret}")
    (key,) = (await small.list()).data
    assert key.HasField("last_used_at")


def later(seconds: float) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return moment


@pytest.mark.parametrize("expiry", [{"ttl": Duration(seconds=60)}, {"expires_at": later(3600)}])
async def test_a_key_is_refused_from_its_expiry_on(small: KeysMesh, expiry: dict[str, Any]) -> None:
    made = await small.create(**expiry)
    end = made.key.expires_at.ToMicroseconds()
    await Authenticator(small.keys, clock=lambda: end - 1).authenticate(f"Bearer {made.secret}")
    with pytest.raises(AuthenticationError, match="expired"):
        await Authenticator(small.keys, clock=lambda: end).authenticate(f"Bearer {made.secret}")


@pytest.mark.parametrize(
    ("fields", "field", "word"),
    [
        ({"name": " "}, "name", "empty"),
        ({"name": "a\nb"}, "name", "printed"),
        ({"name": "a" * 129}, "name", "128"),
        ({"scopes": []}, "scopes", "telemetry.read"),
        ({"scopes": ["read", "root"]}, "scopes[1]", "root"),
        ({"tenant": "a/b"}, "tenant", "letters"),
        ({"ttl": Duration()}, "ttl", "more than 0"),
        ({"ttl": Duration(seconds=-5)}, "ttl", "more than 0"),
        ({"ttl": Duration(seconds=400_000_000)}, "ttl", "ten years"),
        ({"expires_at": Timestamp(seconds=1)}, "expires_at", "future"),
        ({"expires_at": Timestamp(seconds=10**15)}, "expires_at", "no moment"),
        ({"requests_per_minute": 0}, "requests_per_minute", "at least 1"),
        ({"tokens_per_minute": 0}, "tokens_per_minute", "at least 1"),
        ({"request_id": "\t"}, "request_id", "printed"),
    ],
)
async def test_a_wrong_field_is_named(small: KeysMesh, fields: dict[str, Any], field: str, word: str) -> None:
    error = await refused(small.create(**fields))
    assert isinstance(error, InvalidArgumentError)
    assert error.field == field
    assert word in error.message


async def test_a_secret_given_for_an_id_is_not_repeated_in_the_error(small: KeysMesh) -> None:
    made = await small.create()
    error = await refused(small.revoke(made.secret))
    assert error.field == "key_id"
    assert made.secret.rsplit("_", 1)[1] not in error.message
    assert isinstance(await refused(small.revoke("0" * 16)), NotFoundError)
    assert (await refused(small.revoke(""))).reason == "MISSING_FIELD"


async def test_every_scope_of_the_gateway_can_be_given(small: KeysMesh) -> None:
    made: v1.CreateKeyResponse = await small.create(scopes=SCOPES[::-1])
    assert tuple(made.key.scopes) == SCOPES


async def test_no_more_keys_are_remembered_than_allowed(small: KeysMesh) -> None:
    keys = Keys(small.node.database, cached=3)
    for _ in range(5):
        assert await keys.find((await small.create()).key.id) is not None
        assert await keys.find("0" * 16) is None
    assert len(keys._cache) == 3
    assert len(keys._unknown) == 1
