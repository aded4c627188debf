"""Chats that clients fetch again, over the whole stack."""

from typing import Any

import httpx
import pytest

from tests.gateway.conftest import read_events
from tests.gateway.test_chat import WEATHER, chat

CHATS = "/v1/chat/completions"
LLAMA_STACK = {"X-LlamaStack-Client-Version": "0.2.20"}


async def ask(http: httpx.AsyncClient, text: str, **more: Any) -> Any:
    headers = more.pop("headers", {})
    answer = await http.post(CHATS, json=chat(text, **more), headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_chat_that_is_to_be_stored_is_shown_as_it_was_answered(http: httpx.AsyncClient) -> None:
    made = await ask(http, "say hello there", store=True, metadata={"for": "me"})
    shown = (await http.get(f"{CHATS}/{made['id']}")).json()
    assert shown == {
        **made, "input_messages": [{"role": "user", "content": "say hello there"}], "metadata": {"for": "me"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "store", "kept"),
    [({}, None, False), ({}, False, False), (LLAMA_STACK, None, True), (LLAMA_STACK, False, False)],
)
async def test_clients_of_llama_stack_keep_their_chats_unless_they_say_otherwise(
    http: httpx.AsyncClient, headers: dict[str, str], store: bool | None, *, kept: bool
) -> None:
    more = {} if store is None else {"store": store}
    made = await ask(http, "say something", headers=headers, **more)
    assert (await http.get(f"{CHATS}/{made['id']}")).status_code == (200 if kept else 404)


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"logprobs": True, "top_logprobs": 1}, {"tools": [WEATHER]}])
async def test_a_streamed_chat_is_stored_whole_before_its_end_is_told(
    http: httpx.AsyncClient, more: dict[str, Any]
) -> None:
    text = "the weather?" if "tools" in more else "say one two three"
    body = chat(text, stream=True, store=True, **more)
    async with http.stream("POST", CHATS, json=body) as response:
        events = await read_events(response)
    shown = (await http.get(f"{CHATS}/{events[0]['id']}")).json()
    whole = await ask(http, text, **more)
    assert shown["choices"] == whole["choices"]
    assert shown["usage"] == whole["usage"]
    assert shown["created"] == events[0]["created"]


async def test_stored_chats_are_listed_in_pages_by_model_and_notes(http: httpx.AsyncClient) -> None:
    notes = {"test": "pages"}
    made = [(await ask(http, f"say {n}", store=True, metadata=notes))["id"] for n in range(5)]
    query: dict[str, Any] = {"metadata[test]": "pages", "limit": 2, "model": "scripted"}
    seen: list[str] = []
    while True:
        page = (await http.get(CHATS, params=query)).json()
        seen += [one["id"] for one in page["data"]]
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        if not page["has_more"]:
            break
        query["after"] = page["last_id"]
    assert seen == made[::-1]
    rising = (await http.get(CHATS, params={"metadata[test]": "pages", "order": "asc"})).json()
    assert [one["id"] for one in rising["data"]] == made
    none = (await http.get(CHATS, params={"metadata[test]": "other"})).json()
    assert none == {"object": "list", "data": [], "first_id": "", "last_id": "", "has_more": False}


async def test_notes_are_replaced_and_nothing_else(http: httpx.AsyncClient) -> None:
    made = await ask(http, "say x", store=True, metadata={"a": "1"})
    path = f"{CHATS}/{made['id']}"
    changed = (await http.post(path, json={"metadata": {"b": "2"}})).json()
    assert changed["metadata"] == {"b": "2"}
    assert (await http.get(path)).json() == changed
    assert (await http.get(CHATS, params={"metadata[a]": "1", "metadata[b]": "2"})).json()["data"] == []
    refused = await http.post(path, json={"metadata": {}, "model": "other"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")


async def test_a_deleted_chat_is_gone(http: httpx.AsyncClient) -> None:
    made = await ask(http, "say x", store=True)
    path = f"{CHATS}/{made['id']}"
    gone = (await http.delete(path)).json()
    assert gone == {"object": "chat.completion.deleted", "id": made["id"], "deleted": True}
    for method in ("GET", "DELETE"):
        assert (await http.request(method, path)).status_code == 404
    assert (await http.get(f"{path}/messages")).status_code == 404


async def test_what_a_chat_was_asked_is_listed_in_pages(http: httpx.AsyncClient) -> None:
    parts = [{"type": "text", "text": "say x"}]
    body = {
        "model": "scripted",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}],
        "store": True,
    }
    made = (await http.post(CHATS, json=body)).json()
    path = f"{CHATS}/{made['id']}/messages"
    first = (await http.get(path, params={"limit": 1})).json()
    assert [(one["role"], one["content"]) for one in first["data"]] == [("system", "Be brief.")]
    assert first["has_more"]
    second = (await http.get(path, params={"after": first["last_id"]})).json()
    assert [(one["content"], one["content_parts"]) for one in second["data"]] == [(None, parts)]
    assert not second["has_more"]
    falling = (await http.get(path, params={"order": "desc"})).json()
    assert [one["role"] for one in falling["data"]] == ["user", "system"]


@pytest.mark.parametrize("metadata", [{str(n): "" for n in range(17)}, {"x" * 65: ""}, {"x": "y" * 513}, {"x": 1}])
async def test_notes_that_could_not_be_kept_are_refused_before_the_answer(
    http: httpx.AsyncClient, metadata: dict[str, Any]
) -> None:
    refused = await http.post(CHATS, json=chat("hang", store=True, metadata=metadata))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith("metadata")
