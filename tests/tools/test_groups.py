"""Groups: registered, configured, listed, kept."""

from pathlib import Path
from typing import Any

import pytest

from llamastack import v1
from services.runtime.config import ConfigError
from stack_client.calls import unary
from stack_client.content import struct, text_of
from stack_client.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from tests.tools.conftest import PYTHON
from tests.tools.mesh import SHOP, ToolsMesh, of, tools_mesh

SAY = '{"do": "say", "text": "x"}'


async def test_registering_the_same_again_answers_the_same(mesh: ToolsMesh) -> None:
    before = mesh.shop.listed
    group = await mesh.register(SHOP)
    assert group == (await mesh.groups.GetToolGroup(v1.GetToolGroupRequest(toolgroup_id=SHOP))).tool_group
    assert mesh.shop.listed == before
    assert group.settings.timeout_seconds == 60
    with pytest.raises(AlreadyExistsError, match="other content"):
        await mesh.register(SHOP, description="another")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"provider_id": "nobody"}, "no provider 'nobody'; there are: agent-memory"),
        ({"args": struct({"bad": 1})}, r"args\.bad"),
        ({"mcp_endpoint": v1.URL(uri="http://x")}, "is for the provider"),
        ({"settings": v1.ToolGroupSettings(timeout_seconds=4000)}, "at most 3600"),
        ({"settings": v1.ToolGroupSettings(max_concurrency=0)}, "max_concurrency is 0"),
        ({"settings": v1.ToolGroupSettings(egress_hosts=["https://x/y"])}, "is no host"),
        ({"name": ""}, "toolgroup_id is empty"),
        ({"name": "a/b"}, "slash"),
        ({"name": "python::mine", "provider_id": "python"}, "configuration alone"),
    ],
)
async def test_groups_that_cannot_be_are_refused(mesh: ToolsMesh, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        await mesh.register(**{"name": "test::x", **fields})


async def test_groups_outlive_the_process_and_are_the_tenants_own(home: Path) -> None:
    async with tools_mesh(home) as mesh:
        await mesh.register(tenant="a", description="mine")
    async with tools_mesh(home) as mesh:
        listed = await mesh.groups.ListToolGroups(v1.ListToolGroupsRequest(), metadata=of("a"))
        assert SHOP in [group.identifier for group in listed.data]
        assert text_of((await mesh.invoke(f"{SHOP}/read", tenant="a", kwargs_json=SAY)).content) == "x"
        with pytest.raises(NotFoundError):
            await mesh.invoke(f"{SHOP}/read", tenant="b", kwargs_json=SAY)


async def test_stored_results_outlive_the_process(home: Path) -> None:
    async with tools_mesh(home) as mesh:
        await mesh.register()
        first = await mesh.invoke(f"{SHOP}/write", kwargs_json=SAY, idempotency_key="k1")
    async with tools_mesh(home) as mesh:
        assert await mesh.invoke(f"{SHOP}/write", kwargs_json=SAY, idempotency_key="k1") == first
        assert not mesh.shop.ran


async def test_a_removed_group_and_its_tools_are_gone(mesh: ToolsMesh) -> None:
    await mesh.groups.UnregisterToolGroup(v1.UnregisterToolGroupRequest(toolgroup_id=SHOP))
    with pytest.raises(NotFoundError):
        await mesh.invoke(f"{SHOP}/read", kwargs_json=SAY)
    await mesh.register(SHOP, description="another")


async def test_configured_groups_are_everybodys_and_stay(home: Path) -> None:
    async with tools_mesh(home, **PYTHON) as mesh:
        for tenant in ("", "a"):
            result = await mesh.invoke("python::test/add", tenant=tenant, kwargs=struct({"a": 1}))
            assert text_of(result.content) == "2"
        request = v1.UnregisterToolGroupRequest(toolgroup_id="python::test")
        with pytest.raises(PermissionDeniedError):
            await unary(mesh.groups.UnregisterToolGroup(request))


async def test_a_tenant_may_have_its_own_group_in_place_of_a_built_in_one(mesh: ToolsMesh) -> None:
    await mesh.register("builtin::websearch", provider_id="workshop")
    assert text_of((await mesh.invoke("builtin::websearch/read", kwargs_json=SAY)).content) == "x"
    listed = await mesh.groups.ListToolGroups(v1.ListToolGroupsRequest(), metadata=of("other"))
    found = {group.identifier: group.provider_id for group in listed.data}
    assert found["builtin::websearch"] == "recorded"


async def test_calls_do_not_list_the_tools_again(mesh: ToolsMesh) -> None:
    await mesh.invoke(f"{SHOP}/read", kwargs_json=SAY)
    before = mesh.shop.listed
    for _ in range(5):
        await mesh.invoke(f"{SHOP}/read", kwargs_json=SAY)
    assert mesh.shop.listed == before
    await mesh.runtime.ListRuntimeTools(v1.ListRuntimeToolsRequest(tool_group_id=SHOP))
    assert mesh.shop.listed == before + 1


async def test_tools_of_a_server_that_is_away_are_known_from_the_last_time(home: Path) -> None:
    async with tools_mesh(home) as mesh:
        await mesh.register()
    async with tools_mesh(home) as mesh:
        mesh.shop.away = True
        listed = await mesh.groups.ListTools(v1.ListToolsRequest(toolgroup_id=SHOP))
        assert [tool.name for tool in listed.data] == ["put", "read", "write"]
        with pytest.raises(UnavailableError):
            await mesh.client.tools.list_now(SHOP)
        with pytest.raises(UnavailableError):
            await mesh.register("test::new")


async def test_a_bare_name_finds_the_one_tool_that_has_it(mesh: ToolsMesh) -> None:
    assert text_of((await mesh.invoke("add", kwargs=struct({"a": 1, "b": 1}))).content) == "2"
    with pytest.raises(InvalidArgumentError, match=r"test::free/read or test::shop/read"):
        await mesh.invoke("read", kwargs_json=SAY)
    with pytest.raises(NotFoundError, match="the tools are"):
        await mesh.invoke("dance")


async def test_tools_are_listed_in_pages_in_both_forms(mesh: ToolsMesh) -> None:
    tools = await mesh.client.tools.list()
    names = [tool.identifier for tool in tools]
    assert names == sorted(names)
    first = await mesh.groups.ListTools(v1.ListToolsRequest(page_size=2))
    second = await mesh.groups.ListTools(v1.ListToolsRequest(page_size=2, page_token=first.next_page_token))
    assert [tool.identifier for tool in (*first.data, *second.data)] == names[:4]
    (add,) = [tool for tool in tools if tool.name == "add"]
    assert [(one.name, one.parameter_type, one.required) for one in add.parameters] == [
        ("a", "integer", True),
        ("b", "integer", False),
    ]
    assert add.parameters[1].default.number_value == 1


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ({"providers": {"nobody": {}}}, r"tools\.providers\.nobody"),
        ({"toolgroups": [{"identifier": "x", "provider_id": "nobody"}]}, "no provider 'nobody'"),
        ({"providers": {"python": {"groups": {"p": {"functions": ["nowhere:f"]}}}}}, "nowhere"),
        ({"secrets": {"s": {"values": {}, "tenants": ["a"]}}}, "hosts"),
        ({"max_output_bytes": 1}, "max_output_bytes"),
        ({"egress_allow": ["not a/host"]}, "egress_allow"),
    ],
)
async def test_a_configuration_that_cannot_be_is_refused_at_the_start(
    home: Path, tools: dict[str, Any], words: str
) -> None:
    with pytest.raises((ConfigError, InvalidArgumentError), match=words):
        async with tools_mesh(home, **tools):
            pass
