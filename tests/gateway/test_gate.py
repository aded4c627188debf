"""Who may come in: keys, scopes, rates, tenants, pages of other origins."""

from collections.abc import AsyncIterator

import httpx
import pytest

from llamastack import v1
from stack_client import StackClient
from tests.stacks import SERVICES, StackProcess, stack_process

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "say hi"}]}


@pytest.fixture(scope="module")
async def closed() -> AsyncIterator[StackProcess]:
    settings = {"auth": {"required": True}, "cors_origins": ["https://app.example.com"]}
    with stack_process(gateway=settings) as stack:
        stack.start(*SERVICES)
        stack.start("gateway")
        yield stack


async def key(stack: StackProcess, *scopes: str, tenant: str = "", **more: object) -> dict[str, str]:
    """Headers with a new key."""
    async with StackClient(stack.addresses) as client:
        stub = v1.KeysServiceStub(client.channel("gateway"))
        request = v1.CreateKeyRequest(name="test", scopes=scopes, tenant=tenant, **more)  # type: ignore[arg-type]
        made = await stub.CreateKey(request)
    return {"authorization": f"Bearer {made.secret}"}


@pytest.fixture
async def client(closed: StackProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=closed.url, timeout=30) as client:
        yield client


async def test_without_a_key_only_health_and_version_answer(client: httpx.AsyncClient) -> None:
    refused = await client.post("/v1/chat/completions", json=CHAT)
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    assert "Bearer" in refused.headers["www-authenticate"]
    for path in ("/v1/health", "/v1/version", "/", "/livez"):
        assert (await client.get(path)).status_code == 200


async def test_a_key_may_do_what_its_scopes_say(closed: StackProcess, client: httpx.AsyncClient) -> None:
    headers = await key(closed, "inference", "read")
    assert (await client.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200
    assert (await client.get("/v1/models", headers=headers)).status_code == 200
    refused = await client.post("/v1/shields", json={"shield_id": "x"}, headers=headers)
    assert refused.status_code == 403
    assert "admin" in refused.json()["error"]["message"]


async def test_a_wrong_key_is_refused(client: httpx.AsyncClient) -> None:
    headers = {"authorization": "Bearer lsk_aaaaaaaaaaaa_bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}
    assert (await client.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 401


async def test_requests_beyond_the_rate_wait(closed: StackProcess, client: httpx.AsyncClient) -> None:
    headers = await key(closed, "inference", requests_per_minute=2)
    codes = [(await client.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    late = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert int(late.headers["retry-after"]) >= 1
    assert late.json()["error"]["type"] == "rate_limit_error"


async def test_tokens_beyond_the_rate_wait(closed: StackProcess, client: httpx.AsyncClient) -> None:
    headers = await key(closed, "inference", tokens_per_minute=5)
    body = {**CHAT, "messages": [{"role": "user", "content": "say one two three four five six seven"}]}
    first = await client.post("/v1/chat/completions", json=body, headers=headers)
    second = await client.post("/v1/chat/completions", json=body, headers=headers)
    assert (first.status_code, second.status_code) == (200, 429)


async def test_tenants_do_not_see_each_other(closed: StackProcess, client: httpx.AsyncClient) -> None:
    ours = await key(closed, "agents", "read", tenant="ours")
    theirs = await key(closed, "agents", "read", tenant="theirs")
    made = (await client.post("/v1/responses", json={"model": "scripted", "input": "say x"}, headers=ours)).json()
    assert (await client.get(f"/v1/responses/{made['id']}", headers=ours)).status_code == 200
    assert (await client.get(f"/v1/responses/{made['id']}", headers=theirs)).status_code == 404


async def test_pages_of_configured_origins_may_call(client: httpx.AsyncClient) -> None:
    asked = {"origin": "https://app.example.com", "access-control-request-method": "POST"}
    allowed = await client.options("/v1/chat/completions", headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "https://app.example.com"
    refused = await client.options("/v1/chat/completions", headers={**asked, "origin": "https://evil.example.com"})
    assert "access-control-allow-origin" not in refused.headers
