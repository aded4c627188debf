import httpx
import pytest

RAG = "builtin::rag"


async def test_groups_are_registered_shown_and_unregistered(http: httpx.AsyncClient) -> None:
    args = {"base_url": "http://127.0.0.1:1"}
    body = {"toolgroup_id": "mine::search", "provider_id": "searxng", "args": args}
    assert (await http.post("/v1/toolgroups", json=body)).status_code == 204
    assert (await http.post("/v1/toolgroups", json=body)).status_code == 204
    shown = (await http.get("/v1/toolgroups/mine::search")).json()
    assert (shown["type"], shown["args"], shown["mcp_endpoint"]) == ("tool_group", args, None)
    assert shown in (await http.get("/v1/toolgroups")).json()["data"]
    assert (await http.delete("/v1/toolgroups/mine::search")).status_code == 204
    assert (await http.get("/v1/toolgroups/mine::search")).status_code == 404


@pytest.mark.parametrize("name", [RAG, f"{RAG}/knowledge_search"])
async def test_tools_are_listed_by_group_and_by_tool(http: httpx.AsyncClient, name: str) -> None:
    [tool] = (await http.get("/v1/tools", params={"toolgroup_id": name})).json()["data"]
    assert (tool["identifier"], tool["type"], tool["toolgroup_id"]) == (f"{RAG}/knowledge_search", "tool", RAG)
    parameter = tool["parameters"][0]
    assert (parameter["name"], parameter["parameter_type"], parameter["required"]) == ("query", "string", True)
    assert (await http.get(f"/v1/tools/{RAG}/knowledge_search")).json() == tool


async def test_the_runtime_lists_tools_as_old_and_new_clients_read_them(http: httpx.AsyncClient) -> None:
    query = {"tool_group_id": "builtin::websearch"}
    [tool] = (await http.get("/v1/tool-runtime/list-tools", params=query)).json()["data"]
    assert (tool["name"], tool["toolgroup_id"]) == ("web_search", "builtin::websearch")
    assert tool["parameters"][0]["name"] == "query"
    assert tool["input_schema"]["required"] == ["query"]


async def test_an_mcp_server_that_is_not_there_is_said(http: httpx.AsyncClient) -> None:
    query = {"mcp_endpoint[uri]": "http://127.0.0.1:1/sse"}
    answer = await http.get("/v1/tool-runtime/list-tools", params=query)
    assert answer.status_code == 503
    assert "does not answer" in answer.json()["error"]["message"]


async def test_a_failing_tool_is_an_answer_and_an_unknown_one_is_404(http: httpx.AsyncClient) -> None:
    name = "builtin::wolfram_alpha/wolfram_alpha"
    done = (await http.post("/v1/tool-runtime/invoke", json={"tool_name": name, "kwargs": {"query": "6*7"}})).json()
    assert "42" in done["content"]
    assert (done["error_code"], done["error_message"]) == (None, None)
    failed = await http.post("/v1/tool-runtime/invoke", json={"tool_name": name, "kwargs": {}})
    assert (failed.status_code, failed.json()["error_code"]) == (200, 400)
    assert (await http.post("/v1/tool-runtime/invoke", json={"tool_name": "none", "kwargs": {}})).status_code == 404
