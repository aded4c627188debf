"""The registry of models: list, register, load, fail, unregister, and what is kept over a restart."""

from pathlib import Path

import pytest

from llamastack import v1
from stack_client.content import text_of
from stack_client.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, UnavailableError
from tests.inference.conftest import SCRIPTED, Node, running_node


async def test_models_are_listed_by_identifier_in_pages(scripted: Node) -> None:
    for name in ("c", "a", "b"):
        await scripted.client.models.register(name, provider_id="scripted")
    stub = v1.ModelsServiceStub(scripted.client.channel("inference"))
    seen, token = [], ""
    while True:
        page = await stub.ListModels(v1.ListModelsRequest(page_size=2, page_token=token))
        assert len(page.data) <= 2
        seen += [model.identifier for model in page.data]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["a", "b", "c", "scripted", "scripted-embed"]


@pytest.mark.parametrize("token", ["nonsense", "AAAA", "ÄÖ"])
async def test_a_damaged_page_token_is_refused(scripted: Node, token: str) -> None:
    stub = v1.ModelsServiceStub(scripted.client.channel("inference"))
    with pytest.raises(Exception, match="page_token is damaged"):
        await stub.ListModels(v1.ListModelsRequest(page_token=token))


async def test_a_registered_model_serves_and_says_what_it_is(scripted: Node) -> None:
    await scripted.client.models.register(
        "parrot", provider_id="scripted", metadata={"script": [{"reply": "Squawk: {0}"}], "owner": "me"}
    )
    model = await scripted.client.models.wait_ready("parrot")
    assert model.provider_id == "scripted"
    assert model.type == v1.RESOURCE_TYPE_MODEL
    assert model.model_type == v1.MODEL_TYPE_LLM
    assert model.metadata["owner"] == "me"
    assert model.metadata["context_length"] == 8192
    assert model.HasField("created")
    answer = await scripted.client.inference.chat("parrot", "hello")
    assert text_of(answer.completion_message.content) == "Squawk: hello"


async def test_registering_twice_is_one_model_and_other_content_is_a_conflict(scripted: Node) -> None:
    first = await scripted.client.models.register("m", provider_id="scripted", metadata={"a": 1})
    again = await scripted.client.models.register("m", provider_id="scripted", metadata={"a": 1})
    assert first.created == again.created
    with pytest.raises(AlreadyExistsError):
        await scripted.client.models.register("m", provider_id="scripted", metadata={"a": 2})


async def test_an_unregistered_model_is_gone(scripted: Node) -> None:
    await scripted.client.models.register("m", provider_id="scripted")
    await scripted.client.models.wait_ready("m")
    await scripted.client.models.unregister("m")
    with pytest.raises(NotFoundError):
        await scripted.client.models.get("m")
    with pytest.raises(NotFoundError):
        await scripted.client.models.unregister("m")


async def test_a_model_that_cannot_be_loaded_says_why_and_can_be_registered_again(scripted: Node) -> None:
    await scripted.client.models.register("bad", provider_id="scripted", metadata={"script": [{"match": "("}]})
    with pytest.raises(InvalidArgumentError, match="no regular expression"):
        await scripted.client.models.wait_ready("bad")
    with pytest.raises(UnavailableError, match="could not be loaded"):
        await scripted.client.inference.chat("bad", "Hi")
    await scripted.client.models.register("bad", provider_id="scripted", metadata={"script": [{"reply": "ok"}]})
    await scripted.client.models.wait_ready("bad")


@pytest.mark.parametrize(
    ("provider", "name", "message"),
    [
        ("nobody", "x", "no provider 'nobody'"),
        ("torch", "/does/not/exist", "there is no file or folder"),
        ("torch", "packaged:gpt-9", "no packaged model"),
    ],
)
async def test_a_model_of_an_unknown_provider_or_place_is_refused(
    scripted: Node, provider: str, name: str, message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):  # noqa: PT012 (refused at once, or when it loads)
        await scripted.client.models.register("x", provider_id=provider, provider_model_id=name)
        await scripted.client.models.wait_ready("x")


async def test_models_registered_at_run_time_are_kept_over_a_restart(tmp_path: Path) -> None:
    script = {"script": [{"reply": "still here"}]}
    async with running_node(tmp_path, [SCRIPTED]) as node:
        await node.client.models.register("kept", provider_id="scripted", metadata=script)
        await node.client.models.register("dropped", provider_id="scripted")
        await node.client.models.wait_ready("kept")
        await node.client.models.unregister("dropped")
        before = await node.client.models.get("kept")
    async with running_node(tmp_path, [SCRIPTED]) as node:
        after = await node.client.models.wait_ready("kept")
        assert after == before
        assert [model.identifier for model in await node.client.models.list()] == ["kept", "scripted"]
        assert text_of((await node.client.inference.chat("kept", "x")).completion_message.content) == "still here"


async def test_a_model_that_is_not_what_its_registration_says_does_not_serve(scripted: Node) -> None:
    await scripted.client.models.register(
        "e", provider_id="scripted", model_type=v1.MODEL_TYPE_EMBEDDING, metadata={"embedding_dimension": 999}
    )
    with pytest.raises(InvalidArgumentError, match="embedding_dimension 999"):
        await scripted.client.models.wait_ready("e")
    await scripted.client.models.register(
        "f", provider_id="scripted", model_type=v1.MODEL_TYPE_EMBEDDING, metadata={"embedding_dimension": 16}
    )
    await scripted.client.models.wait_ready("f")


async def test_a_request_of_a_model_that_is_unregistered_ends_with_unavailable(real: Node) -> None:
    await real.client.models.register("twin", provider_id="torch", provider_model_id="packaged:smollm2-135m")
    await real.client.models.wait_ready("twin")
    with pytest.raises(UnavailableError, match="unregistered"):  # noqa: PT012 (the stream fails as it is read)
        async for event in real.client.inference.stream_chat("twin", "Tell me a long story.", max_tokens=2000):
            if event.sequence == 2:
                await real.client.models.unregister("twin")
