"""`tool_choice` with `allowed_tools`: the model may call only some of the tools, the response shows them all."""

from typing import Any

import httpx


def function(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "name": name, "parameters": parameters}


async def test_a_tool_that_is_not_allowed_is_not_called(http: httpx.AsyncClient) -> None:
    body = {"model": "scripted", "input": "the weather?", "tools": [function("get_weather"), function("other")]}
    free = (await http.post("/v1/responses", json=body)).json()
    assert [item["type"] for item in free["output"]] == ["function_call"]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "other"}]}
    held = await http.post("/v1/responses", json={**body, "tool_choice": choice})
    assert held.status_code == 200, held.text
    assert "get_weather" not in [item.get("name") for item in held.json()["output"]]
    assert [tool["name"] for tool in held.json()["tools"]] == ["get_weather", "other"]
    assert held.json()["tool_choice"]["type"] == "allowed_tools"
    unknown = {**choice, "tools": [{"type": "function", "name": "nothing"}]}
    assert (await http.post("/v1/responses", json={**body, "tool_choice": unknown})).status_code == 400
