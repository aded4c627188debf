"""`client.tools`."""

import pytest

from llamastack import v1
from stack_client import SyncStackClient
from stack_client.content import text_of
from stack_client.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError
from tests.stacks import StackProcess
from tests.tools.mesh import SHOP, ToolsMesh


async def test_groups_and_tools_are_listed_registered_and_removed(mesh: ToolsMesh) -> None:
    tools = mesh.client.tools
    group = await tools.register("test::mine", "workshop", effect="read", approval="always", max_concurrency=2)
    assert group.settings.approval == v1.TOOL_APPROVAL_ALWAYS
    assert "test::mine" in [one.identifier for one in await tools.groups()]
    assert (await tools.group("test::mine")).settings.max_concurrency == 2
    assert [tool.name for tool in await tools.list("test::mine")] == ["put", "read", "write"]
    assert [tool.name for tool in await tools.list_now("test::mine")] == ["put", "read", "write"]
    assert (await tools.get("test::mine/write")).effect == v1.TOOL_EFFECT_READ
    await tools.unregister("test::mine")
    with pytest.raises(NotFoundError):
        await tools.group("test::mine")
    with pytest.raises(PermissionDeniedError, match="configuration"):
        await tools.unregister("builtin::rag")
    with pytest.raises(InvalidArgumentError, match="no effect 'big'"):
        await tools.register("test::b", "workshop", effect="big")


async def test_a_tool_is_invoked_streamed_looked_up_and_cancelled(mesh: ToolsMesh) -> None:
    tools = mesh.client.tools
    result = await tools.invoke(f"{SHOP}/read", {"do": "say", "text": "x"}, idempotency_key="k1")
    assert text_of(result.content) == "x"
    assert (await tools.get_invocation("k1")).status == v1.INVOCATION_STATUS_COMPLETED
    assert (await tools.cancel("k1")).status == v1.INVOCATION_STATUS_COMPLETED
    async with tools.stream(f"{SHOP}/read", {"do": "work"}) as events:
        kinds = [event.WhichOneof("event") async for event in events]
    assert kinds == ["started", "progress", "output", "result"]


def test_the_same_works_without_await(stack: StackProcess) -> None:
    with SyncStackClient(stack.addresses) as client:
        result = client.tools.invoke("wolfram_alpha", {"query": "6 * 7"})
        assert "42" in text_of(result.content)
        kinds = [event.WhichOneof("event") for event in client.tools.stream("wolfram_alpha", {"query": "6 * 7"})]
        assert kinds == ["started", "result"]
