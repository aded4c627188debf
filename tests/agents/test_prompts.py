"""Prompts: versions, their slots, and responses that use them."""

from typing import Any

import pytest

from llamastack import v1
from stack_client.calls import unary
from stack_client.errors import ConflictError, InvalidArgumentError, NotFoundError, UnsupportedError
from tests.agents.mesh import Mesh


def text(value: str) -> v1.ResponseContentPart:
    return v1.ResponseContentPart(input_text=v1.InputText(text=value))


async def test_a_prompt_has_versions_that_never_change_and_one_that_is_the_default(mesh: Mesh) -> None:
    prompts = mesh.client.prompts
    first = await prompts.create("Speak {{ language }}.", ["language"])
    assert (first.version, first.is_default, list(first.variables)) == (1, True, ["language"])
    second = await prompts.update(first.prompt_id, "Whisper {{language}}.", ["language"], version=1)
    assert (second.version, second.is_default) == (2, True)
    third = await prompts.update(first.prompt_id, "Shout.", version=2, set_as_default=False)
    assert [one.version for one in await prompts.versions(first.prompt_id)] == [1, 2, 3]
    assert await prompts.get(first.prompt_id) == second
    assert await prompts.get(first.prompt_id, version=3) == third
    chosen = await prompts.set_default(first.prompt_id, 1)
    assert chosen == first
    assert await prompts.get(first.prompt_id) == first
    assert first in await prompts.list()
    await prompts.delete(first.prompt_id)
    for call in (prompts.get, prompts.delete, prompts.versions):
        with pytest.raises(NotFoundError, match=first.prompt_id):
            await call(first.prompt_id)


async def test_an_edit_of_an_older_version_is_a_conflict(mesh: Mesh) -> None:
    made = await mesh.client.prompts.create("one")
    await mesh.client.prompts.update(made.prompt_id, "two", version=1)
    with pytest.raises(ConflictError, match="is at version 2, not 1"):
        await mesh.client.prompts.update(made.prompt_id, "three", version=1)
    with pytest.raises(NotFoundError, match="has no version 7; its latest is 2"):
        await mesh.client.prompts.get(made.prompt_id, version=7)


@pytest.mark.parametrize(
    ("prompt", "variables"),
    [("{{ a }}", []), ("{{ a }} {{ b }}", ["a"]), ("{{ a b }}", ["a"]), ("x", ["a", "a"]), ("x", ["a b"])],
)
async def test_slots_and_variables_must_agree(mesh: Mesh, prompt: str, variables: list[str]) -> None:
    with pytest.raises(InvalidArgumentError):
        await mesh.client.prompts.create(prompt, variables)


async def test_prompts_come_in_pages(mesh: Mesh) -> None:
    made = await mesh.client.prompts.create("1")
    for version in (1, 2, 3):
        await mesh.client.prompts.update(made.prompt_id, str(version + 1), version=version)
    stub: Any = v1.PromptsServiceStub(mesh.client.channel("agents"))
    request = v1.ListPromptVersionsRequest(prompt_id=made.prompt_id, page_size=3)
    page = await stub.ListPromptVersions(request)
    request.page_token = page.next_page_token
    rest = await stub.ListPromptVersions(request)
    assert [one.prompt for one in [*page.data, *rest.data]] == ["1", "2", "3", "4"]
    assert (len(page.data), rest.next_page_token) == (3, "")


async def test_a_response_uses_a_prompt_as_its_instructions(mesh: Mesh) -> None:
    made = await mesh.client.prompts.create("Speak {{ language }}, {{ name }}.", ["language", "name"])
    await mesh.client.prompts.update(made.prompt_id, "Be silent.", version=1)

    async def create(**variables: v1.ResponseContentPart) -> v1.ResponseObject:
        reference = v1.PromptReference(id=made.prompt_id, version="1", variables=variables)
        options = v1.CreateResponseRequest(prompt=reference)
        return await mesh.client.responses.create("scripted", "slow hi", options=options, instructions="Be kind.")

    response = await create(language=text("French"), name=text("{{ name }}"))
    assert response.instructions == "Speak French, {{ name }}.\n\nBe kind."
    assert response.prompt.id == made.prompt_id
    with pytest.raises(InvalidArgumentError, match=r"'name'.* is missing"):
        await create(language=text("French"))
    with pytest.raises(InvalidArgumentError, match="has no such variable"):
        await create(language=text("French"), name=text("x"), colour=text("red"))
    image = v1.ResponseContentPart(input_image=v1.InputImage(image_url="data:,"))
    with pytest.raises(UnsupportedError, match="only texts fill slots"):
        await create(language=text("French"), name=image)


async def test_tenants_do_not_see_each_others_prompts(mesh: Mesh) -> None:
    stub: Any = v1.PromptsServiceStub(mesh.client.channel("agents"))
    mine, yours = (("x-tenant", "mine"),), (("x-tenant", "yours"),)
    made = (await stub.CreatePrompt(v1.CreatePromptRequest(prompt="secret"), metadata=mine)).prompt
    assert made not in (await stub.ListPrompts(v1.ListPromptsRequest(), metadata=yours)).data
    calls = [
        (stub.GetPrompt, v1.GetPromptRequest(prompt_id=made.prompt_id)),
        (stub.UpdatePrompt, v1.UpdatePromptRequest(prompt_id=made.prompt_id, prompt="x", version=1)),
        (stub.DeletePrompt, v1.DeletePromptRequest(prompt_id=made.prompt_id)),
        (stub.ListPromptVersions, v1.ListPromptVersionsRequest(prompt_id=made.prompt_id)),
        (stub.SetDefaultPromptVersion, v1.SetDefaultPromptVersionRequest(prompt_id=made.prompt_id, version=1)),
    ]
    for method, request in calls:
        with pytest.raises(NotFoundError):
            await unary(method(request, metadata=yours))
