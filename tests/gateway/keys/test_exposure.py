"""Whether the gateway may be open."""

import pytest

from services.gateway.keys import AuthConfig, JwtConfig, check_exposure, keys_required
from services.runtime.config import ConfigError, read_config
from tests.gateway.keys.node import KeysMesh

LOCAL = ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "LOCALHOST", "::ffff:127.0.0.1"]
REACHABLE = [
    "0.0.0.0",
    "::",
    "",
    "10.0.0.1",
    "192.168.1.5",
    "8.8.8.8",
    "::ffff:10.0.0.1",
    "stack.example",
    "localhost.x",
]


@pytest.mark.parametrize("host", LOCAL)
def test_this_machine_may_use_it_without_keys(host: str) -> None:
    check_exposure(host, keys_required=False, allow_open=False)


@pytest.mark.parametrize("host", REACHABLE)
def test_other_machines_may_not_unless_keys_are_needed_or_the_operator_says_so(host: str) -> None:
    with pytest.raises(ConfigError, match="allow_open"):
        check_exposure(host, keys_required=False, allow_open=False)
    check_exposure(host, keys_required=True, allow_open=False)
    check_exposure(host, keys_required=False, allow_open=True)


async def test_auto_needs_keys_where_others_can_reach_it_or_there_are_keys_or_tokens(small: KeysMesh) -> None:
    auto = AuthConfig()
    assert not await keys_required(auto, host="127.0.0.1", keys=small.keys)
    assert await keys_required(auto, host="0.0.0.0", keys=small.keys)
    assert not await keys_required(AuthConfig(allow_open=True), host="0.0.0.0", keys=small.keys)
    jwt = JwtConfig(issuer="https://idp.example", audience="stack")
    assert await keys_required(AuthConfig(jwt=jwt), host="127.0.0.1", keys=small.keys)
    made = await small.create()
    assert await keys_required(auto, host="127.0.0.1", keys=small.keys)
    assert await keys_required(AuthConfig(allow_open=True), host="0.0.0.0", keys=small.keys)
    await small.revoke(made.key.id)
    assert not await keys_required(auto, host="127.0.0.1", keys=small.keys)


async def test_what_the_operator_says_is_done_or_refused(small: KeysMesh) -> None:
    await small.create()
    assert not await keys_required(AuthConfig(required=False), host="localhost", keys=small.keys)
    assert await keys_required(AuthConfig(required=True), host="localhost", keys=small.keys)
    with pytest.raises(ConfigError, match=r"gateway\.auth\.required"):
        await keys_required(AuthConfig(required=False), host="0.0.0.0", keys=small.keys)


def test_the_configuration_is_read_strictly() -> None:
    assert read_config(AuthConfig, {"required": True}).required is True
    assert read_config(AuthConfig, {"required": "auto", "cache_seconds": 0}).cache_seconds == 0
    for wrong in (
        {"required": "yes"},
        {"cache_seconds": 61},
        {"cache_seconds": -1},
        {"cached_keys": 0},
        {"open": True},
    ):
        with pytest.raises(ConfigError):
            read_config(AuthConfig, wrong)
