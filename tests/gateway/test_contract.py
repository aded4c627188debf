"""Small things of the wire contract that clients rely on and that no other file is about."""

import httpx
import pytest

HELLO = [{"role": "user", "content": "say hello"}]


async def test_a_registered_model_may_be_registered_again_without_its_provider(http: httpx.AsyncClient) -> None:
    before = (await http.get("/v1/models/scripted")).json()
    for body in ({}, {"provider_id": "scripted"}, {"model_type": "llm", "metadata": {}}):
        again = await http.post("/v1/models", json={"model_id": "scripted", **body})
        assert again.status_code == 200
        assert again.json() == before
    other = await http.post("/v1/models", json={"model_id": "scripted", "model_type": "embedding"})
    assert other.status_code in {400, 409}


@pytest.mark.parametrize("path", ["/v1/vector-io/insert", "/v1/vector-io/query"])
async def test_a_request_without_its_vector_db_is_a_bad_one(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.post(path, json={"chunks": [{"content": "x"}], "query": "x"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "vector_db_id"


async def test_log_probabilities_that_nobody_asked_for_are_null(http: httpx.AsyncClient) -> None:
    chat = await http.post("/v1/inference/chat-completion", json={"model_id": "scripted", "messages": HELLO})
    text = await http.post("/v1/inference/completion", json={"model_id": "scripted", "content": "say hello"})
    assert chat.json()["logprobs"] is None
    assert text.json()["logprobs"] is None


async def test_moderation_names_the_kinds_of_input_in_a_bare_list(http: httpx.AsyncClient) -> None:
    shield = {"shield_id": "no-secrets", "provider_id": "pii"}
    assert (await http.post("/v1/shields", json=shield)).status_code == 200
    answer = await http.post("/v1/moderations", json={"input": ["ada@example.com", "x"], "model": "no-secrets"})
    assert (await http.delete("/v1/shields/no-secrets")).status_code == 204
    assert answer.status_code == 200, answer.text
    flagged, clean = answer.json()["results"]
    assert flagged["flagged"]
    assert not clean["flagged"]
    assert flagged["category_applied_input_types"]["EMAIL_ADDRESS"] == ["text"]


async def test_batch_inference_is_served_where_clients_of_0_1_look_for_it(http: httpx.AsyncClient) -> None:
    body = {"model": "scripted", "messages_batch": [HELLO, HELLO]}
    chats = await http.post("/v1/batch-inference/chat-completion", json=body)
    texts = await http.post("/v1/batch-inference/completion", json={"model": "scripted", "content_batch": ["say a"]})
    assert [one["content"] for one in chats.json()["completion_message_batch"]] == ["hello", "hello"]
    assert [one["content"] for one in texts.json()["completion_message_batch"]] == ["a"]


async def test_a_wrong_method_is_the_callers_fault(http: httpx.AsyncClient) -> None:
    answer = await http.patch("/v1/models")
    assert answer.status_code == 405
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.headers["allow"] == "GET, POST"


async def test_an_error_names_the_field_as_the_client_wrote_it(http: httpx.AsyncClient) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    body = {"model": "scripted", "messages": [{"role": "user", "content": [picture]}]}
    error = (await http.post("/v1/chat/completions", json=body)).json()["error"]
    assert error["param"] == "messages[0].content[0].image"
    assert error["message"].startswith("messages[0].content[0].image: ")
    asked = {"model": "words", "input": "x", "dimensions": 8}
    assert (await http.post("/v1/embeddings", json=asked)).json()["error"]["param"] == "dimensions"


async def test_a_failed_response_has_a_code_that_strict_clients_know(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/responses", json={"model": "scripted", "input": "break it"})
    assert answer.json()["status"] == "failed"
    assert answer.json()["error"]["code"] == "server_error"
    assert "the scripted engine broke" in answer.json()["error"]["message"]


async def test_a_dialog_to_compact_may_be_plain_text(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/responses/compact", json={"model": "scripted", "input": "say hello"})
    assert answer.status_code != 400, answer.text


async def test_a_response_may_be_asked_for_by_a_form_with_json_values(http: httpx.AsyncClient) -> None:
    form = {"model": "scripted", "input": "say hello", "store": "false", "metadata": '{"a": "b"}'}
    answer = await http.post("/v1/responses", data=form)
    assert answer.status_code == 200, answer.text
    assert answer.json()["output"][0]["content"][0]["text"] == "hello"
    assert answer.json()["metadata"] == {"a": "b"}
    assert answer.json()["store"] is False
    curl = {"content-type": "application/x-www-form-urlencoded"}  # what curl says of JSON, too
    plain = await http.post("/v1/responses", content=b'{"model": "scripted", "input": "say hello"}', headers=curl)
    assert plain.status_code == 200
    broken = await http.post("/v1/responses", content=b'{"model"', headers=curl)
    assert broken.status_code == 400
    assert "not valid JSON" in broken.json()["error"]["message"]
