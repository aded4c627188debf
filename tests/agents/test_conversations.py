"""Conversations: their items, and the responses that write to them."""

from typing import Any

import pytest

from llamastack import v1
from stack_client.calls import unary
from stack_client.content import struct
from stack_client.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
)
from stack_client.responses import function_output, output_text, user_item
from tests.agents.mesh import Mesh, until

FUNCTION = v1.ResponseTool(function=v1.FunctionTool(name="get_weather", parameters=struct({"type": "object"})))


def texts(items: list[v1.ResponseItem]) -> list[str]:
    return ["".join(part.input_text.text + part.output_text.text for part in one.message.content) for one in items]


async def test_a_conversation_has_metadata_that_is_replaced_and_is_deleted_once(mesh: Mesh) -> None:
    conversations = mesh.client.conversations
    made = await conversations.create(metadata={"a": "1"})
    assert await conversations.get(made.id) == made
    changed = await conversations.update(made.id, {"b": "2"})
    assert dict(changed.metadata) == {"b": "2"}
    assert changed in await conversations.list()
    await conversations.delete(made.id)
    for call in (conversations.get, conversations.delete, conversations.items):
        with pytest.raises(NotFoundError, match=made.id):
            await call(made.id)
    with pytest.raises(InvalidArgumentError, match="malformed"):
        await conversations.get("conv_1")


async def test_items_are_added_listed_read_and_removed(mesh: Mesh) -> None:
    conversations = mesh.client.conversations
    made = await conversations.create([user_item("one")])
    added = await conversations.add(made.id, [user_item("two"), user_item("three")])
    assert texts(added) == ["two", "three"]
    assert all(one.message.id.startswith("msg_") for one in added)
    assert texts(await conversations.items(made.id)) == ["one", "two", "three"]
    assert await conversations.item(made.id, added[0].message.id) == added[0]
    await conversations.delete_item(made.id, added[0].message.id)
    assert texts(await conversations.items(made.id)) == ["one", "three"]
    for call in (conversations.item, conversations.delete_item):
        with pytest.raises(NotFoundError, match=added[0].message.id):
            await call(made.id, added[0].message.id)
    with pytest.raises(InvalidArgumentError, match="21 entries"):
        await conversations.add(made.id, [user_item("x")] * 21)
    with pytest.raises(InvalidArgumentError, match="0 entries"):
        await conversations.add(made.id, [])


async def test_items_come_in_pages_newest_first_and_from_marks(mesh: Mesh) -> None:
    made = await mesh.client.conversations.create([user_item(text) for text in "abcd"])
    stub: Any = v1.ConversationsServiceStub(mesh.client.channel("agents"))

    async def page(**fields: Any) -> v1.ListConversationItemsResponse:
        request = v1.ListConversationItemsRequest(conversation_id=made.id, **fields)
        answer: v1.ListConversationItemsResponse = await unary(stub.ListConversationItems(request))
        return answer

    first = await page(page_size=3)
    assert texts([*first.data]) == ["d", "c", "b"]
    rest = await page(page_size=3, page_token=first.next_page_token)
    assert (texts([*rest.data]), rest.next_page_token) == (["a"], "")
    c = first.data[1].message.id
    assert texts([*(await page(after=c)).data]) == ["b", "a"]
    assert texts([*(await page(before=c)).data]) == ["d"]
    assert texts([*(await page(order=v1.SORT_ORDER_ASC, after=c)).data]) == ["d"]
    with pytest.raises(NotFoundError, match="msg_0"):
        await page(after="msg_0")
    with pytest.raises(InvalidArgumentError, match="exclude each other"):
        await page(after=c, before=c)
    with pytest.raises(InvalidArgumentError) as damaged:
        await page(page_token=first.next_page_token, order=v1.SORT_ORDER_ASC)
    assert damaged.value.reason == "INVALID_PAGE_TOKEN"


async def test_a_response_reads_a_conversation_and_appends_to_it(mesh: Mesh) -> None:
    conversations, create = mesh.client.conversations, mesh.client.responses.create
    made = await conversations.create([user_item("the number is seven")])
    first = await create("scripted", "weather here", conversation=made.id, tools=[FUNCTION])
    call = first.output[1].function_call
    second = await create("scripted", [function_output(call.call_id, "rain")], conversation=made.id, tools=[FUNCTION])
    assert output_text(second) == "The tool says: rain"
    kinds = [item.WhichOneof("item") for item in await conversations.items(made.id)]
    assert kinds == ["message", "message", "message", "function_call", "function_call_output", "message"]
    longer = await create("scripted", "slow and?", conversation=made.id)
    bare = await create("scripted", "slow and?")
    assert longer.usage.input_tokens > bare.usage.input_tokens
    await mesh.client.responses.delete(first.id)
    assert len(await conversations.items(made.id)) == 8, "conversations keep the items of deleted responses"


async def test_one_response_at_a_time_writes_to_a_conversation(mesh: Mesh) -> None:
    conversations, responses = mesh.client.conversations, mesh.client.responses
    made = await conversations.create()
    writing = await responses.create("scripted", "hang", conversation=made.id, background=True)
    with pytest.raises(ConflictError, match=f"response {writing.id} is writing"):
        await responses.create("scripted", "slow me too", conversation=made.id)
    with pytest.raises(ConflictError, match="is writing"):
        await conversations.add(made.id, [user_item("x")])
    with pytest.raises(ConflictError, match="is writing"):
        await conversations.delete_item(made.id, "msg_0")
    with pytest.raises(FailedPreconditionError, match="is writing"):
        await conversations.delete(made.id)
    assert await conversations.items(made.id) == [], "nothing is appended before the end"

    async def spoke() -> bool:
        return bool((await responses.get(writing.id)).output)

    await until(spoke)
    await responses.cancel(writing.id)
    assert texts(await conversations.items(made.id)) == ["hang", "before"]
    after = await responses.create("scripted", "slow after", conversation=made.id)
    assert output_text(after) == "after"


async def test_a_response_that_is_not_stored_still_writes_to_its_conversation(mesh: Mesh) -> None:
    made = await mesh.client.conversations.create()
    await mesh.client.responses.create("scripted", "slow kept", conversation=made.id, store=False)
    assert texts(await mesh.client.conversations.items(made.id)) == ["slow kept", "kept"]


async def test_tenants_do_not_see_each_others_conversations(mesh: Mesh) -> None:
    stub: Any = v1.ConversationsServiceStub(mesh.client.channel("agents"))
    mine, yours = (("x-tenant", "mine"),), (("x-tenant", "yours"),)
    made = (
        await stub.CreateConversation(v1.CreateConversationRequest(items=[user_item("x")]), metadata=mine)
    ).conversation
    assert made not in (await stub.ListConversations(v1.ListConversationsRequest(), metadata=yours)).data
    key = {"conversation_id": made.id}
    calls = [
        (stub.GetConversation, v1.GetConversationRequest(**key)),
        (stub.UpdateConversation, v1.UpdateConversationRequest(**key)),
        (stub.DeleteConversation, v1.DeleteConversationRequest(**key)),
        (stub.ListConversationItems, v1.ListConversationItemsRequest(**key)),
        (stub.AddConversationItems, v1.AddConversationItemsRequest(items=[user_item("y")], **key)),
        (stub.DeleteConversationItem, v1.DeleteConversationItemRequest(item_id="msg_0", **key)),
        (stub.GetConversationItem, v1.GetConversationItemRequest(item_id="msg_0", **key)),
    ]
    for method, request in calls:
        with pytest.raises(NotFoundError):
            await unary(method(request, metadata=yours))
    responses: Any = v1.ResponsesServiceStub(mesh.client.channel("agents"))
    request = v1.CreateResponseRequest(model="scripted", input=[user_item("slow hi")], conversation=made.id)
    with pytest.raises(NotFoundError):
        await unary(responses.CreateResponse(request, metadata=yours))


async def test_items_that_no_model_is_shown_are_refused(mesh: Mesh) -> None:
    made = await mesh.client.conversations.create()
    file = v1.ResponseContentPart(input_file=v1.InputFile(file_id="file_1"))
    message = v1.ResponseMessage(role=v1.RESPONSE_ROLE_USER, content=[file])
    with pytest.raises(UnsupportedError) as refused:
        await mesh.client.conversations.add(made.id, [v1.ResponseItem(message=message)])
    assert refused.value.field == "items[0].content[0].input_file"
    with pytest.raises(UnsupportedError, match="in the input of responses only"):
        await mesh.client.conversations.add(made.id, [v1.ResponseItem(item_reference=v1.ItemReference(id="msg_1"))])
    with pytest.raises(InvalidArgumentError, match=r"items\[0\] has no kind"):
        await mesh.client.conversations.add(made.id, [v1.ResponseItem()])
