"""`stack keys`, over a gateway that has nothing but keys."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from services.gateway.keys import Authenticator
from services.gateway.principal import SCOPES
from stack_client.home import Home, ServiceRecord, StackRecord
from stack_client.keys import USUAL_SCOPES
from tests.cli.conftest import BOUND_SECONDS, COMMAND
from tests.gateway.keys.node import KeysMesh, keys_mesh
from tests.stacks import ROOT, environment

Run = Callable[..., Awaitable["subprocess.CompletedProcess[str]"]]


@pytest.fixture
async def gateway() -> AsyncIterator[KeysMesh]:
    async with keys_mesh() as mesh:
        home = Home.choose(mesh.home)
        services = {"gateway": ServiceRecord(process="gateway", addresses=[mesh.client.addresses["gateway"]])}
        record = StackRecord(pid=os.getpid(), version="test", started_at="", config=None, services=services)
        with home.locked():
            home.write_record(record)
            yield mesh


@pytest.fixture
def keys(gateway: KeysMesh) -> Run:
    async def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return await asyncio.to_thread(
            subprocess.run,
            [*COMMAND, "keys", *arguments],
            env=environment(STACK_HOME=str(gateway.home)),
            cwd=ROOT, capture_output=True, text=True, timeout=BOUND_SECONDS, check=False,
        )  # fmt: skip

    return run


async def test_a_key_is_made_used_listed_and_revoked(keys: Run, gateway: KeysMesh) -> None:
    made = await keys("create", "my app", "--tenant", "acme", "--requests-per-minute", "60")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert "nobody can show it again" in made.stderr
    assert secret not in made.stderr
    principal = await Authenticator(gateway.keys).authenticate(f"Bearer {secret}")
    assert principal.tenant == "acme"
    assert principal.scopes == set(USUAL_SCOPES)
    listed = (await keys()).stdout
    prefix = secret.rpartition("_")[0]
    assert listed.startswith(f"{prefix}\tmy app\tacme\tread inference ")
    assert "\t60 requests/min\tnever\n" in listed
    assert secret not in listed
    assert (await keys("revoke", prefix)).stdout == f"{prefix} (my app) is revoked\n"
    assert not (await keys("list")).stdout
    assert "\trevoked 20" in (await keys("list", "--all")).stdout


async def test_a_key_is_made_as_json_with_scopes_and_an_end(keys: Run) -> None:
    done = await keys(
        "create", "ops", "--scope", "admin", "--expires", "90d", "--tokens-per-minute", "5", "--json"
    )  # fmt: skip
    made = json.loads(done.stdout)
    assert made["secret"].startswith(made["prefix"])
    assert made["scopes"] == ["admin"]
    assert made["tokens_per_minute"] == 5
    assert "expires_at" in made
    (listed,) = json.loads((await keys("list", "--json")).stdout)
    assert listed == {name: value for name, value in made.items() if name != "secret"}
    await keys("create", "later", "--expires", "2999-01-31T12:00+01:00")
    assert "\t2999-01-31 11:00\n" in (await keys("list")).stdout


async def test_wrong_arguments_are_named(keys: Run) -> None:
    assert "no scope 'root'; there are: read" in (await keys("create", "x", "--scope", "root")).stderr
    assert "neither 90d" in (await keys("create", "x", "--expires", "soon")).stderr
    assert "give 1 to" in (await keys("create", "x", "--requests-per-minute", "0")).stderr
    assert "no key 'nobody'" in (await keys("revoke", "nobody")).stderr


async def test_the_keys_of_a_gateway_that_does_not_answer_are_not_listed(keys: Run) -> None:
    done = await keys("list", "--address", "localhost:1")
    assert done.returncode == 1
    assert "nothing answers at localhost:1" in done.stderr


def test_usual_scopes_are_all_but_those_that_manage_or_look_at_others() -> None:
    assert set(SCOPES) - set(USUAL_SCOPES) == {"admin", "telemetry.read"}


def test_the_command_imports_nothing_of_the_server() -> None:
    program = "import sys, stack_client.cli.keys; sys.exit(any(m.startswith('services') for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], env=environment(), cwd=ROOT, check=False)
    assert done.returncode == 0
