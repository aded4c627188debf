"""Tools over HTTP: OpenAPI documents, credentials, where requests may go."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from llamastack import v1
from stack_client.content import struct, text_of
from stack_client.errors import InvalidArgumentError
from tests.tools.mesh import tools_mesh
from tests.tools.web import Asked, Reply, as_json, web

API = "http::pets"
PET = {"type": "object", "properties": {"name": {"type": "string"}, "tag": {"type": "string", "nullable": True}}}
DOCUMENT: dict[str, Any] = {
    "openapi": "3.0.3",
    "info": {"title": "Pets", "version": "1"},
    "components": {
        "schemas": {"Pet": {**PET, "required": ["name"]}},
        "securitySchemes": {
            "key": {"type": "apiKey", "in": "header", "name": "X-Key"},
            "inquery": {"type": "apiKey", "in": "query", "name": "k"},
            "token": {"type": "http", "scheme": "bearer"},
            "login": {"type": "http", "scheme": "basic"},
        },
    },
    "paths": {
        "/pets/{id}": {
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": {
                "operationId": "getPet",
                "summary": "One pet.",
                "parameters": [
                    {"name": "tags", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
                    {"name": "fields", "in": "query", "explode": False, "schema": {"type": "array"}},
                    {"name": "X-Trace", "in": "header", "schema": {"type": "string"}},
                ],
            },
            "delete": {"operationId": "deletePet"},
        },
        "/pets": {
            "post": {
                "operationId": "addPet",
                "security": [{"key": []}],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Pet"}}},
                },
            }
        },
        "/search": {"get": {"operationId": "find", "security": [{"inquery": []}]}},
        "/me": {"get": {"operationId": "me", "security": [{"token": []}]}},
        "/login": {"get": {"operationId": "login", "security": [{"login": []}]}},
        "/upload": {
            "post": {"operationId": "upload", "requestBody": {"content": {"image/png": {"schema": {}}}}},
        },
    },
}
SECRET = "s3cret-of-the-shop"


def echo(asked: Asked) -> Reply:
    return as_json({"target": asked.target, "body": asked.body.decode(), "key": asked.headers.get("x-key", "")})


def config(**more: Any) -> dict[str, Any]:
    values = {name: {"env": "TEST_TOOL_SECRET"} for name in ("key", "inquery", "token", "username", "password")}
    secrets = {"shop": {"values": values, "hosts": ["127.0.0.1"], "tenants": ["*"]}}
    return {"egress_allow": ["127.0.0.0/8"], "secrets": secrets, **more}


def arguments(url: str, **more: Any) -> Any:
    return struct({"openapi": {**DOCUMENT, "servers": [{"url": url}]}, **more})


async def test_each_operation_is_a_tool_with_the_effect_of_its_method(home: Path) -> None:
    async with tools_mesh(home, **config()) as mesh:
        await mesh.register(API, provider_id="openapi", args=arguments("http://127.0.0.1"))
        tools = {tool.name: tool for tool in (await mesh.groups.ListTools(v1.ListToolsRequest(toolgroup_id=API))).data}
        assert tools["getPet"].effect == v1.TOOL_EFFECT_READ
        assert tools["deletePet"].effect == v1.TOOL_EFFECT_IDEMPOTENT_WRITE
        assert tools["addPet"].effect == v1.TOOL_EFFECT_WRITE
        assert "upload" not in tools
        wrong = await mesh.invoke(f"{API}/addPet", kwargs=struct({"body": {"tag": None}}))
        assert list(wrong.schema_path) == ["/body/name"]


async def test_arguments_are_written_where_the_document_says(home: Path) -> None:
    async with web(echo) as server, tools_mesh(home, **config()) as mesh:
        await mesh.register(API, provider_id="openapi", args=arguments(f"{server.url}/v2/"))
        sent = {"id": "a/b c", "tags": ["x", "y&z"], "fields": ["n", "t"], "X-Trace": "t1"}
        result = await mesh.invoke(f"{API}/getPet", kwargs=struct(sent))
        assert json.loads(text_of(result.content))["target"] == "/v2/pets/a%2Fb%20c?tags=x&tags=y%26z&fields=n%2Ct"
        assert server.asked[-1].headers["x-trace"] == "t1"
        assert "idempotency-key" not in server.asked[-1].headers
        await mesh.invoke(f"{API}/deletePet", kwargs=struct({"id": "1"}), idempotency_key="k1")
        assert server.asked[-1].method == "DELETE"
        assert server.asked[-1].headers["idempotency-key"] == "k1"


@pytest.mark.parametrize("name", ["..", ".", ""])
async def test_no_argument_changes_the_path(home: Path, name: str) -> None:
    async with web(echo) as server, tools_mesh(home, **config()) as mesh:
        await mesh.register(API, provider_id="openapi", args=arguments(server.url))
        assert (await mesh.invoke(f"{API}/getPet", kwargs=struct({"id": name}))).error_code == 400
        assert not server.asked


async def test_credentials_go_where_the_document_wants_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_TOOL_SECRET", SECRET)
    async with web(echo) as server, tools_mesh(home, **config()) as mesh:
        settings = v1.ToolGroupSettings(secrets_ref="shop")
        await mesh.register(API, provider_id="openapi", args=arguments(server.url), settings=settings)
        result = await mesh.invoke(f"{API}/addPet", kwargs=struct({"body": {"name": "Rex"}}))
        assert server.asked[-1].headers["x-key"] == SECRET
        assert json.loads(server.asked[-1].body) == {"name": "Rex"}
        assert SECRET not in str(result)
        assert json.loads(text_of(result.content))["key"] == "[secret]"
        await mesh.invoke(f"{API}/find")
        assert server.asked[-1].target == f"/search?k={SECRET}"
        await mesh.invoke(f"{API}/me", authorization="callers-own-token")
        assert server.asked[-1].headers["authorization"] == "Bearer callers-own-token"
        await mesh.invoke(f"{API}/login")
        pair = base64.b64encode(f"{SECRET}:{SECRET}".encode()).decode()
        assert server.asked[-1].headers["authorization"] == f"Basic {pair}"


async def test_without_its_credential_an_operation_says_which_it_needs(home: Path) -> None:
    async with web(echo) as server, tools_mesh(home, **config()) as mesh:
        await mesh.register(API, provider_id="openapi", args=arguments(server.url))
        result = await mesh.invoke(f"{API}/addPet", kwargs=struct({"body": {"name": "Rex"}}))
        assert "needs the credential key" in result.error_message
        assert not server.asked


async def test_private_addresses_are_refused_unless_the_operator_allows_them(home: Path) -> None:
    async with web(echo) as server, tools_mesh(home) as mesh:
        await mesh.register(API, provider_id="openapi", args=arguments(server.url))
        result = await mesh.invoke(f"{API}/getPet", kwargs=struct({"id": "1"}))
        assert result.error_code == 403
        assert "tools.egress_allow" in result.error_message
        assert not server.asked


async def test_a_redirect_to_another_host_is_refused(home: Path) -> None:
    def away(asked: Asked) -> Reply:
        return 302, {"Location": "http://localhost:1/elsewhere"}, b""

    async with web(away) as server, tools_mesh(home, **config()) as mesh:
        await mesh.register(API, provider_id="openapi", args=arguments(server.url))
        result = await mesh.invoke(f"{API}/getPet", kwargs=struct({"id": "1"}))
        assert result.error_code == 403
        assert "localhost" in result.error_message


async def test_only_the_groups_hosts_are_reached(home: Path) -> None:
    async with web(echo) as server, tools_mesh(home, **config()) as mesh:
        settings = v1.ToolGroupSettings(egress_hosts=["api.example.com"])
        await mesh.register(API, provider_id="openapi", args=arguments(server.url), settings=settings)
        result = await mesh.invoke(f"{API}/getPet", kwargs=struct({"id": "1"}))
        assert "egress_hosts" in result.error_message
        assert not server.asked


async def test_a_secret_goes_to_its_own_hosts_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_TOOL_SECRET", SECRET)
    async with web(echo) as server, tools_mesh(home, **config(egress_allow=["localhost", "127.0.0.0/8"])) as mesh:
        url = server.url.replace("127.0.0.1", "localhost")
        settings = v1.ToolGroupSettings(secrets_ref="shop")
        await mesh.register(API, provider_id="openapi", args=arguments(url), settings=settings)
        result = await mesh.invoke(f"{API}/find")
        assert "the secret's hosts" in result.error_message
        assert not server.asked
        beyond = v1.ToolGroupSettings(secrets_ref="shop", egress_hosts=["evil.example"])
        with pytest.raises(InvalidArgumentError, match=r"evil\.example"):
            await mesh.register("http::b", provider_id="openapi", args=arguments(url), settings=beyond)


async def test_faults_of_the_server_are_results(home: Path) -> None:
    async with web(lambda _: as_json({"why": "no such pet"}, 404)) as server, tools_mesh(home, **config()) as mesh:
        await mesh.register(API, provider_id="openapi", args=arguments(server.url))
        result = await mesh.invoke(f"{API}/getPet", kwargs=struct({"id": "1"}))
        assert result.error_code == 404
        assert "no such pet" in result.error_message


async def test_a_document_is_read_from_a_url_and_only_chosen_operations_are_tools(home: Path) -> None:
    def answer(asked: Asked) -> Reply:
        return as_json({**DOCUMENT, "servers": [{"url": "/api"}]} if asked.target == "/openapi.json" else {"ok": 1})

    async with web(answer) as server, tools_mesh(home, **config()) as mesh:
        args = struct({"openapi": f"{server.url}/openapi.json", "operations": ["getPet"]})
        await mesh.register(API, provider_id="openapi", args=args)
        listed = await mesh.groups.ListTools(v1.ListToolsRequest(toolgroup_id=API))
        assert [tool.name for tool in listed.data] == ["getPet"]
        await mesh.invoke(f"{API}/getPet", kwargs=struct({"id": "1"}))
        assert server.asked[-1].target == "/api/pets/1"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "give the OpenAPI document"),
        ({"openapi": {"swagger": "2.0"}}, "3.0 and 3.1"),
        ({"openapi": "a: &x [1]\nb: *x"}, "aliases"),
        ({"openapi": {**DOCUMENT}}, "give the API's address"),
        ({"openapi": {**DOCUMENT}, "server": "https://a.example", "operations": ["fly"]}, "no operation 'fly'"),
        ({"openapi": {**DOCUMENT}, "server": "https://a.example", "colour": 1}, "colour"),
        ({"openapi": "http://169.254.169.254/latest"}, "not public"),
    ],
)
async def test_documents_that_cannot_be_used_are_refused(home: Path, args: dict[str, Any], words: str) -> None:
    async with tools_mesh(home) as mesh:
        with pytest.raises(Exception, match=words):
            await mesh.register(API, provider_id="openapi", args=struct(args))
