"""Responses over the real tools service, a real MCP server and PostgreSQL."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from llamastack import v1
from stack_client import SyncStackClient
from stack_client.responses import approval, output_text, user_item
from tests.agents.mesh import running_mesh, until
from tests.agents.test_chat_completions import completion, stub
from tests.agents.test_responses import check_stream, items, mcp, watch
from tests.tools.mcp.servers import Peer, serving
from tests.tools.mesh import tools_mesh


async def test_a_tool_of_a_real_mcp_server_is_listed_allowed_and_called(tmp_path: Path, inference: str) -> None:
    async with (
        serving(Peer()) as url,
        tools_mesh(tmp_path / "tools", egress_allow=["127.0.0.1"]) as tools,
        running_mesh(tmp_path / "agents", inference=inference, tools=tools.client.addresses["tools"]) as mesh,
    ):
        server = mcp(server_url=url, allowed_tools=["echo"], approval_mode=v1.MCP_APPROVAL_MODE_ALWAYS)
        first = await mesh.client.responses.create("scripted", "echo it", tools=[server])
        assert items(first) == ["mcp_list_tools", "mcp_approval_request"]
        decided = [approval(first.output[1].mcp_approval_request.id, approve=True)]
        second = await mesh.client.responses.create("scripted", decided, previous_response_id=first.id, tools=[server])
        assert output_text(second) == "The tool says: far away"
        check_stream(await watch(mesh, second.id), second)

        async def removed() -> bool:
            return not [group for group in await tools.client.tools.groups() if group.identifier.startswith("mcp::")]

        await until(removed)


async def test_responses_conversations_and_prompts_live_in_postgresql(
    tmp_path: Path, inference: str, postgres_databases: Callable[[], str]
) -> None:
    url = postgres_databases().replace("postgresql://", "postgresql+psycopg://", 1)
    async with running_mesh(tmp_path, inference=inference, database=url) as mesh:
        client = mesh.client
        made = await client.conversations.create([user_item("one")])
        prompt = await client.prompts.create("Speak.")
        options = v1.CreateResponseRequest(prompt=v1.PromptReference(id=prompt.prompt_id))
        first = await client.responses.create("scripted", "slow two", conversation=made.id, options=options)
        check_stream(await watch(mesh, first.id), first)
        await client.responses.create("scripted", "slow three", conversation=made.id, store=False)
        assert len(await client.conversations.items(made.id)) == 5
        below = await client.responses.create("scripted", "slow four", previous_response_id=first.id)
        assert [one.id for one in await client.responses.list()] == [below.id, first.id]
        await client.responses.delete(first.id)
        assert (await client.prompts.list())[0].prompt_id == prompt.prompt_id
        named = v1.ResponseItem(item_reference=v1.ItemReference(id=below.output[0].message.id))
        third = await client.responses.create("scripted", [user_item("slow five"), named, user_item("slow six")])
        assert (await client.responses.input_items(third.id))[1].message.id == below.output[0].message.id
        chats = stub(mesh)
        repeats = [chats.StoreChatCompletion(completion("c-1", metadata={"k": "v"})) for _ in range(8)]
        await asyncio.gather(*repeats)
        found = await chats.ListChatCompletions(v1.ListChatCompletionsRequest(metadata={"k": "v"}))
        assert [one.completion_id for one in found.data] == ["c-1"]
        changed = v1.UpdateChatCompletionRequest(completion_id="c-1", metadata={"k": "w"})
        assert (await chats.UpdateChatCompletion(changed)).completion.metadata["k"] == "w"
        await chats.DeleteChatCompletion(v1.DeleteChatCompletionRequest(completion_id="c-1"))


@pytest.mark.parametrize("name", ["responses", "conversations", "prompts"])
def test_synchronous_clients_have_the_namespaces(name: str) -> None:
    with SyncStackClient({"agents": "unix:/nowhere"}) as client:
        assert "create" in dir(getattr(client, name))
