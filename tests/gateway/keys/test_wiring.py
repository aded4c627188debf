"""The parts put together as the package's docstring says."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from llamastack import v1
from services.gateway.keys import (
    AuthConfig,
    Keys,
    keys_required,
    make_authenticator,
    make_rates,
    redis_address,
    upgrade,
)
from services.gateway.keys.draft import draft
from services.gateway.keys.form import make
from services.gateway.keys.migrations import VERSION_TABLE
from services.runtime.database import Database
from services.runtime.moments import now
from stack_client.errors import AuthenticationError, FailedPreconditionError, ResourceExhaustedError


def opened(folder: Path) -> Database:
    return Database(f"sqlite:///{folder}/gateway.db", owner="gateway", upgrade=upgrade)


async def test_a_request_is_told_counted_and_refused(tmp_path: Path) -> None:
    config = AuthConfig()
    async with opened(tmp_path) as database:
        keys = Keys(database, cache_seconds=config.cache_seconds, cached=config.cached_keys)
        async with keys.running(), make_rates(redis_address()) as rates:
            secret = make()
            request = v1.CreateKeyRequest(name="app", scopes=["inference"], tokens_per_minute=100)
            key = draft(request, key_id=secret.key_id, caller="", moment=now())
            await keys.create(key, secret, request=request)
            required = await keys_required(config, host="127.0.0.1", keys=keys)
            authenticator = make_authenticator(config, keys=keys, required=required)
            with pytest.raises(AuthenticationError):
                await authenticator.authenticate("")
            principal = await authenticator.authenticate(f"Bearer {secret.text}")
            assert principal.may("inference")
            assert not principal.may("admin")
            await rates.admit(principal)
            await rates.spend(principal, 500)
            with pytest.raises(ResourceExhaustedError) as caught:
                await rates.admit(principal)
            assert caught.value.retry_after is not None
            assert 0 < caught.value.retry_after <= 241


async def test_keys_outlive_the_process_and_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    secret, request = make(), v1.CreateKeyRequest(name="app", scopes=["read"])
    async with opened(tmp_path) as database:
        key = draft(request, key_id=secret.key_id, caller="", moment=now())
        await Keys(database).create(key, secret, request=request)
    async with opened(tmp_path) as database:
        authenticator = make_authenticator(AuthConfig(), keys=Keys(database), required=True)
        assert (await authenticator.authenticate(f"Bearer {secret.text}")).key_id == key.id
        async with database.write() as connection:
            await connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(FailedPreconditionError, match="newer version"):
        async with opened(tmp_path):
            pass
