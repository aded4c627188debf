"""Stored chat completions over gRPC."""

from typing import Any

import grpc
import pytest

from llamastack import v1
from tests.agents.mesh import Mesh


def stub(mesh: Mesh) -> Any:
    return v1.ChatCompletionsServiceStub(mesh.client.channel("agents"))


def completion(completion_id: str, **fields: Any) -> v1.StoreChatCompletionRequest:
    given = {"model": "m", "input_messages_json": "[]", "completion_json": '{"id": "x"}', **fields}
    stored = v1.StoredChatCompletion(completion_id=completion_id, **given)
    stored.created_at.seconds = 5
    return v1.StoreChatCompletionRequest(completion=stored)


async def test_a_completion_is_kept_as_it_is_and_a_repeat_changes_nothing(mesh: Mesh) -> None:
    text = '{"a":  1.50, "b": "\\u00e9"}'
    asked = completion("c-1", completion_json=text, metadata={"k": "v"})
    await stub(mesh).StoreChatCompletion(asked)
    await stub(mesh).StoreChatCompletion(completion("c-1", completion_json="{}"))
    found = await stub(mesh).GetChatCompletion(v1.GetChatCompletionRequest(completion_id="c-1"))
    assert found.completion == asked.completion


async def test_tenants_do_not_see_each_others_completions_and_share_ids(mesh: Mesh) -> None:
    yours = [("x-tenant", "you")]
    await stub(mesh).StoreChatCompletion(completion("c-2", model="mine"))
    request = v1.GetChatCompletionRequest(completion_id="c-2")
    with pytest.raises(grpc.aio.AioRpcError, match="c-2"):
        await stub(mesh).GetChatCompletion(request, metadata=yours)
    with pytest.raises(grpc.aio.AioRpcError, match="c-2"):
        await stub(mesh).DeleteChatCompletion(v1.DeleteChatCompletionRequest(completion_id="c-2"), metadata=yours)
    await stub(mesh).StoreChatCompletion(completion("c-2", model="yours"), metadata=yours)
    listed = await stub(mesh).ListChatCompletions(v1.ListChatCompletionsRequest(), metadata=yours)
    assert [one.model for one in listed.data] == ["yours"]
    assert (await stub(mesh).GetChatCompletion(request)).completion.model == "mine"


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("completion.completion_json", {"completion_json": "[]"}),
        ("completion.input_messages_json", {"input_messages_json": "{"}),
        ("completion.model", {"model": ""}),
        ("metadata", {"metadata": {str(n): "" for n in range(17)}}),
    ],
)
async def test_what_could_not_be_shown_again_is_refused_by_name(
    mesh: Mesh, field: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub(mesh).StoreChatCompletion(completion("c-3", **changes))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (refused.value.details() or "")


async def test_a_page_of_large_completions_has_fewer_of_them(mesh: Mesh) -> None:
    large = f'{{"id": "{"x" * 3_000_000}"}}'
    for number in range(5):
        await stub(mesh).StoreChatCompletion(completion(f"l-{number}", model="large", completion_json=large))
    asked, seen = v1.ListChatCompletionsRequest(model="large"), []
    while True:
        page = await stub(mesh).ListChatCompletions(asked)
        seen += [one.completion_id for one in page.data]
        if not page.next_page_token:
            break
        asked.page_token = page.next_page_token
    assert seen == [f"l-{number}" for number in reversed(range(5))]


async def test_a_page_token_belongs_to_its_filters(mesh: Mesh) -> None:
    for number in range(3):
        await stub(mesh).StoreChatCompletion(completion(f"p-{number}", model="paged", metadata={"page": "yes"}))
    asked = v1.ListChatCompletionsRequest(page_size=2, model="paged", metadata={"page": "yes"})
    first = await stub(mesh).ListChatCompletions(asked)
    assert [one.completion_id for one in first.data] == ["p-2", "p-1"]
    asked.page_token = first.next_page_token
    assert [one.completion_id for one in (await stub(mesh).ListChatCompletions(asked)).data] == ["p-0"]
    asked.metadata["page"] = "no"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub(mesh).ListChatCompletions(asked)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
