import pytest

from llamastack import v1
from stack_client import StackClient
from stack_client.errors import DeadlineExceededError, InvalidArgumentError, NotFoundError


async def test_list_shows_models_with_their_type_and_state(client: StackClient) -> None:
    models = {model.identifier: model for model in await client.models.list()}
    assert models["scripted"].model_type == v1.MODEL_TYPE_LLM
    assert models["words"].model_type == v1.MODEL_TYPE_EMBEDDING
    assert models["words"].metadata["embedding_dimension"] == 16
    assert all(model.state == v1.MODEL_STATE_READY for model in models.values())


async def test_list_reads_all_pages(client: StackClient) -> None:
    names = [f"page-{number:03}" for number in range(101)]
    for name in names:
        await client.models.register(name, provider_id="scripted")
    try:
        listed = [model.identifier for model in await client.models.list()]
    finally:
        for name in names:
            await client.models.unregister(name)
    assert set(names) <= set(listed)
    assert len(listed) == len(set(listed))


async def test_a_registered_model_answers_until_it_is_unregistered(client: StackClient) -> None:
    script = {"script": [{"reply": "I am new."}]}
    registered = await client.models.register("new", provider_id="scripted", metadata=script)
    assert registered.identifier == "new"
    ready = await client.models.wait_ready("new")
    assert ready.state == v1.MODEL_STATE_READY
    answer = await client.inference.complete("new", "hi")
    assert answer.content == "I am new."
    await client.models.unregister("new")
    with pytest.raises(NotFoundError):
        await client.models.get("new")
    with pytest.raises(NotFoundError):
        await client.models.unregister("new")


async def test_registering_the_same_again_returns_the_same(client: StackClient) -> None:
    first = await client.models.register("twice", provider_id="scripted")
    second = await client.models.register("twice", provider_id="scripted")
    assert first.created == second.created
    await client.models.unregister("twice")


async def test_waiting_for_a_model_that_cannot_be_loaded_says_why(client: StackClient) -> None:
    await client.models.register("faulty", provider_id="scripted", metadata={"script": [{"match": "("}]})
    with pytest.raises(InvalidArgumentError, match=r"'faulty' could not be loaded: .* is no regular expression"):
        await client.models.wait_ready("faulty")
    await client.models.unregister("faulty")


async def test_waiting_for_a_model_has_a_bound(client: StackClient) -> None:
    with pytest.raises(DeadlineExceededError, match="'scripted' is not ready after 0 s"):
        await client.models.wait_ready("scripted", timeout=0)


async def test_an_unknown_provider_is_refused_by_name(client: StackClient) -> None:
    with pytest.raises(InvalidArgumentError, match="no provider 'vllm'") as caught:
        await client.models.register("x", provider_id="vllm")
    assert caught.value.field == "provider_id"
