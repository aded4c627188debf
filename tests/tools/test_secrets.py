"""Secrets never leave, and calls are on record."""

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from llamastack import v1
from services.tools.tables import audit
from stack_client.content import text_of
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from tests.tools.mesh import ToolsMesh, tools_mesh

SECRET = "open-sesame-4711"
KEPT = "test::kept"
CONFIG: dict[str, Any] = {
    "toolgroups": [{"identifier": KEPT, "provider_id": "workshop", "settings": {"secrets_ref": "shop"}}],
    "secrets": {
        "shop": {"values": {"key": {"env": "TEST_SHOP_KEY"}}},
        "shared": {"values": {"key": {"env": "TEST_SHOP_KEY"}}, "hosts": ["a.example"], "tenants": ["ada"]},
    },
}


@pytest.fixture
async def safe(home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ToolsMesh]:
    monkeypatch.setenv("TEST_SHOP_KEY", SECRET)
    async with tools_mesh(home, **CONFIG) as running:
        yield running


async def records(mesh: ToolsMesh) -> list[dict[str, Any]]:
    async with mesh.node._database.read() as connection:
        rows = await connection.execute(sa.select(audit.c.record).order_by(audit.c.number))
        return [json.loads(row.record) for row in rows]


async def test_a_secret_reaches_the_tool_and_never_the_caller(
    safe: ToolsMesh, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    result = await safe.invoke(f"{KEPT}/read", kwargs_json='{"do": "secret"}', idempotency_key="k1")
    assert safe.shop.ran[0].access.secret == {"key": SECRET}
    assert text_of(result.content) == "it is [secret]"
    assert result.error_message == "[secret]"
    events = await safe.stream(f"{KEPT}/read", kwargs_json='{"do": "print"}')
    shown = "".join(event.output.text for event in events)
    assert shown == "[secret] is out"
    assert SECRET not in str(await safe.get("k1"))
    assert SECRET not in str(await records(safe))
    assert SECRET not in caplog.text
    for file in home.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file


async def test_a_secret_is_for_those_whom_the_operator_names(safe: ToolsMesh) -> None:
    for name, tenant in (("shop", "ada"), ("shared", "bob"), ("nothing", "ada")):
        with pytest.raises(InvalidArgumentError, match="no secret"):
            await safe.register(tenant=tenant, settings=v1.ToolGroupSettings(secrets_ref=name))
    await safe.register(tenant="ada", settings=v1.ToolGroupSettings(secrets_ref="shared"))


async def test_every_call_is_on_record_without_its_arguments(safe: ToolsMesh) -> None:
    settings = v1.ToolGroupSettings(approval=v1.TOOL_APPROVAL_ALWAYS)
    await safe.register("test::asks", settings=settings)
    said = json.dumps({"do": "say", "text": "a private matter"})
    await safe.invoke(f"{KEPT}/write", kwargs_json=said, idempotency_key="k1", session_id="s1", call_id="c1")
    await safe.invoke(f"{KEPT}/write", kwargs_json=said, idempotency_key="k1")
    await safe.invoke(f"{KEPT}/write", kwargs_json="{}")
    await safe.invoke(f"{KEPT}/write", kwargs_json='{"do": "fail"}')
    with pytest.raises(FailedPreconditionError):
        await safe.invoke("test::asks/write", kwargs_json=said)
    with pytest.raises(NotFoundError):
        await safe.invoke("nobody/write")
    found = await records(safe)
    assert [one["outcome"] for one in found] == ["completed", "replayed", "invalid", "failed", "refused", "unknown"]
    assert found[0]["session_id"] == "s1"
    assert found[0]["call_id"] == "c1"
    assert found[0]["effect"] == "write"
    assert found[0]["request_id"]
    assert found[0]["arguments_hmac"] == found[1]["arguments_hmac"] != found[3]["arguments_hmac"]
    assert "private" not in str(found)


async def test_a_changed_record_shows(safe: ToolsMesh) -> None:
    for _ in range(3):
        await safe.invoke(f"{KEPT}/read", kwargs_json='{"do": "say"}')
    assert await safe.node.audit.verify() == ""
    async with safe.node._database.write() as connection:
        await connection.execute(sa.delete(audit).where(audit.c.number == 2))
    assert "record 2 is missing" in await safe.node.audit.verify()
