"""Responses over real services in one process: a scripted model, scripted tools."""

from stack_client.responses import output_text
from tests.agents.mesh import Mesh


async def test_a_response_answers_and_is_stored(mesh: Mesh) -> None:
    response = await mesh.client.responses.create("scripted", "slow hello there")
    assert output_text(response) == "hello there"
    assert await mesh.client.responses.get(response.id) == response
