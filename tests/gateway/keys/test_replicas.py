"""Two gateways that share a PostgreSQL."""

import asyncio

import httpx

from llamastack import v1
from stack_client import StackClient
from tests.gateway.conftest import until
from tests.stacks import StackProcess, stack_process

ROUTES = "/v1/inspect/routes"


async def _status(gateway: StackProcess, headers: dict[str, str]) -> int:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
        return (await client.get(ROUTES, headers=headers)).status_code


async def test_a_key_made_at_one_gateway_opens_the_other_until_that_one_revokes_it(postgres_url: str) -> None:
    settings = {"database": postgres_url, "auth": {"required": True, "cache_seconds": 0.1}}
    with stack_process(gateway=settings) as first, stack_process(gateway=settings) as second:
        async with asyncio.TaskGroup() as group:
            for one in (first, second):
                group.create_task(asyncio.to_thread(one.start, "gateway"))
        async with StackClient(first.addresses) as client:
            stub = v1.KeysServiceStub(client.channel("gateway"))
            made = await stub.CreateKey(v1.CreateKeyRequest(name="shared", scopes=["read"]))
        headers = {"authorization": f"Bearer {made.secret}"}
        assert await _status(second, {}) == 401
        assert await _status(first, headers) == await _status(second, headers) == 200
        async with StackClient(second.addresses) as client:
            stub = v1.KeysServiceStub(client.channel("gateway"))
            await stub.RevokeKey(v1.RevokeKeyRequest(key_id=made.key.id))
        assert await _status(second, headers) == 401

        async def refused() -> bool | None:
            return await _status(first, headers) == 401 or None

        await until(refused)
