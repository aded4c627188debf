"""The built-in groups."""

import json
from pathlib import Path
from typing import Any

import pytest

from llamastack import v1
from services.tools.providers.calculator.numbers import CalculationError
from services.tools.providers.calculator.reading import calculate
from services.tools.providers.websearch.engines import ENGINES
from stack_client.content import struct, text_of
from tests.tools.mesh import ToolsMesh, tools_mesh
from tests.tools.web import Asked, Reply, as_json, web

SEARCH = "builtin::websearch/web_search"
WOLFRAM = "builtin::wolfram_alpha/wolfram_alpha"


async def test_recorded_search_says_that_it_is_recorded(mesh: ToolsMesh) -> None:
    result = await mesh.invoke(SEARCH, kwargs=struct({"query": "What is gRPC?"}))
    answer = json.loads(text_of(result.content))
    assert answer["top_k"][0]["url"] == "https://grpc.io/docs/what-is-grpc/introduction/"
    assert "not a live search" in answer["note"]
    nothing = json.loads(text_of((await mesh.invoke(SEARCH, kwargs=struct({"query": "zyx"}))).content))
    assert nothing["top_k"] == []
    assert "Nothing is stored" in nothing["note"]


ANSWERS = {
    "brave-search": {"web": {"results": [{"title": "A <strong>b</strong>", "url": "u", "description": "c &amp; d"}]}},
    "bing-search": {"webPages": {"value": [{"name": "A b", "url": "u", "snippet": "c & d"}]}},
    "tavily-search": {"results": [{"title": "A b", "url": "u", "content": "c & d", "score": 1}]},
    "searxng": {"results": [{"title": "A b", "url": "u", "content": "c & d"}]},
}


@pytest.mark.parametrize("engine", [engine.name for engine in ENGINES])
async def test_every_engine_gives_the_same_shape(home: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setenv("TEST_SEARCH_KEY", "the-key-of-search")
    group = {"identifier": "builtin::websearch", "provider_id": engine, "settings": {"secrets_ref": "search"}}
    async with web(lambda _: as_json(ANSWERS[engine])) as server:
        config: dict[str, Any] = {
            "toolgroups": [group],
            "providers": {engine: {"base_url": server.url}},
            "egress_allow": ["127.0.0.1/32"],
            "secrets": {"search": {"values": {"api_key": {"env": "TEST_SEARCH_KEY"}}}},
        }
        async with tools_mesh(home, **config) as mesh:
            result = await mesh.invoke(SEARCH, kwargs=struct({"query": "a b"}))
        assert json.loads(text_of(result.content)) == {
            "query": "a b",
            "top_k": [{"title": "A b", "url": "u", "snippet": "c & d"}],
        }
        seen = f"{server.asked[0].target} {server.asked[0].headers} {server.asked[0].body!r}"
        assert ("the-key-of-search" in seen) == (engine != "searxng")


async def test_search_without_a_key_names_the_way_out(mesh: ToolsMesh) -> None:
    await mesh.register("test::brave", provider_id="brave-search")
    result = await mesh.invoke("test::brave/web_search", kwargs=struct({"query": "x"}))
    assert "tools.secrets" in result.error_message


@pytest.mark.parametrize(("status", "words"), [(401, "refused the key"), (429, "too often"), (503, "answered 503")])
async def test_faults_of_an_engine_are_results(home: Path, status: int, words: str) -> None:
    async with web(lambda _: as_json({}, status)) as server:
        config: dict[str, Any] = {"providers": {"searxng": {"base_url": server.url}}, "egress_allow": ["127.0.0.1/32"]}
        async with tools_mesh(home, **config) as mesh:
            await mesh.register("test::searx", provider_id="searxng")
            result = await mesh.invoke("test::searx/web_search", kwargs=struct({"query": "x"}))
    assert words in result.error_message


async def test_wolfram_alpha_is_asked_where_there_is_a_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_WOLFRAM", "the-app-id")

    def answer(asked: Asked) -> Reply:
        return 200, {"Content-Type": "text/plain;charset=utf-8"}, b"Result: 4"

    async with web(answer) as server:
        settings = {"secrets_ref": "wolfram"}
        config: dict[str, Any] = {
            "toolgroups": [
                {"identifier": "builtin::wolfram_alpha", "provider_id": "wolfram-alpha", "settings": settings}
            ],
            "providers": {"wolfram-alpha": {"base_url": server.url}},
            "egress_allow": ["127.0.0.1/32"],
            "secrets": {"wolfram": {"values": {"api_key": {"env": "TEST_WOLFRAM"}}}},
        }
        async with tools_mesh(home, **config) as mesh:
            result = await mesh.invoke(WOLFRAM, kwargs=struct({"query": "2+2"}))
        assert text_of(result.content) == "Result: 4"
        assert server.asked[0].target == "/api/v1/llm-api?input=2%2B2&maxchars=6800&appid=the-app-id"


async def test_without_a_key_the_calculator_answers_and_says_so(mesh: ToolsMesh) -> None:
    text = text_of((await mesh.invoke(WOLFRAM, kwargs=struct({"query": "What is 17% of 240?"}))).content)
    assert "204/5 = 40.8" in text
    assert "computed locally, exactly" in text
    result = await mesh.invoke(WOLFRAM, kwargs=struct({"query": "population of Oslo"}))
    assert "no key for Wolfram Alpha" in result.error_message


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("2 + 2 * 3", "8"),
        ("-2^2", "-4"),
        ("2^-3", "1/8 = 0.125"),
        ("0.1 + 0.2", "3/10 = 0.3"),
        ("1/3 + 1/6", "1/2 = 0.5"),
        ("20! / 18!", "380"),
        ("sqrt(144)", "12"),
        ("square root of 2 squared", "2"),
        ("(-8)^(1/3)", "-2"),
        ("8^(2/3)", "4"),
        ("200 + 10%", "220"),
        ("5 + 3 * 50%", "13/2 = 6.5"),
        ("log2(1024)", "10"),
        ("sin(pi/6)", "about 0.5"),
        ("10 miles in km", "50292/3125 = 16.09344 km"),
        ("212 F to C", "100 C"),
        ("3 hours in minutes", "180 min"),
        ("17 mod 5", "2"),
        ("gcd(12, 18)", "6"),
        ("1,234,567 * 2", "2469134"),
        ("2 pi", "about 6.28318530717958647692528676656"),
    ],
)
def test_the_calculator_is_right(question: str, answer: str) -> None:
    assert calculate(question)[0] == answer


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("1/0", "division by zero"),
        ("9^9^9^9", "too many digits"),
        ("999999!", "factorials go up to"),
        ("(" * 100 + "1" + ")" * 100, "nested too deeply"),
        ("-" * 300 + "1", ""),
        ("__import__('os')", "not understood"),
        ("sqrt(-1)", "not real"),
        ("10 kg in m", "measures mass"),
        ("x + 1", "not known"),
        ("1e999999", "not expected"),
        ("", "nothing"),
        ("1" * 1001, "more than"),
        ("2^" * 100 + "2", "nested too deeply"),
        ("e^e^e^e^e", "too large"),
    ],
)
def test_what_the_calculator_cannot_do_is_said(question: str, words: str) -> None:
    if not words:
        assert calculate(question)[0] == "1"
        return
    with pytest.raises(CalculationError, match=words):
        calculate(question)


async def test_knowledge_is_searched_in_the_banks_of_the_caller(home: Path) -> None:
    async with tools_mesh(home, memory=True) as mesh:
        await mesh.client.memory.create("docs")
        await mesh.client.memory.insert("docs", ["The engine is cooled with water.", "Bread is baked."])
        tool = "builtin::rag/knowledge_search"
        args = struct({"vector_db_ids": ["docs"], "query_config": {"max_chunks": 1}})
        result = await mesh.invoke(tool, kwargs=struct({"query": "How is the engine cooled?"}), args=args)
        assert "cooled with water" in text_of(result.content)
        assert len(result.metadata.fields["document_ids"].list_value) == 1
        without = await mesh.invoke(tool, kwargs=struct({"query": "x"}))
        assert "vector_db_ids" in without.error_message


async def test_an_agent_remembers_recalls_and_forgets(home: Path) -> None:
    async with tools_mesh(home, memory=True) as mesh:
        fact = struct({"text": "The user likes green tea."})
        first = await mesh.invoke("builtin::memory/remember", kwargs=fact, session_id="s1")
        name = first.metadata.fields["id"].string_value
        again = await mesh.invoke("builtin::memory/remember", kwargs=fact, session_id="s1")
        assert again.metadata.fields["known"].bool_value
        query = struct({"query": "What does the user like to drink?"})
        recalled = text_of((await mesh.invoke("builtin::memory/recall", kwargs=query, session_id="s1")).content)
        assert recalled == f"[{name}] The user likes green tea."
        other = await mesh.invoke("builtin::memory/recall", kwargs=query, session_id="s2")
        assert "Nothing is remembered" in text_of(other.content)
        gone = await mesh.invoke("builtin::memory/forget", kwargs=struct({"id": name}), session_id="s1")
        assert gone.metadata.fields["forgotten"].bool_value
        after = await mesh.invoke("builtin::memory/recall", kwargs=query, session_id="s1")
        assert "Nothing is remembered" in text_of(after.content)


async def test_recalled_text_is_not_stored_again(home: Path) -> None:
    async with tools_mesh(home, memory=True) as mesh:
        tool, session = "builtin::memory/remember", {"session_id": "s1"}
        await mesh.invoke(tool, kwargs=struct({"text": "The user likes green tea."}), **session)
        query = struct({"query": "tea"})
        recalled = text_of((await mesh.invoke("builtin::memory/recall", kwargs=query, **session)).content)
        for text in (recalled, "the user likes GREEN tea"):
            result = await mesh.invoke(tool, kwargs=struct({"text": text}), **session)
            assert result.metadata.fields["known"].bool_value, text
        (bank,) = await mesh.client.memory.list()
        assert len(await mesh.client.memory.documents(bank.identifier)) == 1


async def test_memory_of_a_tenant_is_shared_by_its_sessions_and_by_nobody_else(home: Path) -> None:
    async with tools_mesh(home, memory=True) as mesh:
        args = struct({"scope": "tenant"})
        for tenant in ("a", "b"):
            await mesh.register("test::notes", provider_id="agent-memory", args=args, tenant=tenant)
        fact = struct({"text": "The door code is seven."})
        await mesh.invoke("test::notes/remember", kwargs=fact, tenant="a", session_id="s1")
        query = struct({"query": "door code"})
        mine = await mesh.invoke("test::notes/recall", kwargs=query, tenant="a", session_id="s2")
        assert "seven" in text_of(mine.content)
        theirs = await mesh.invoke("test::notes/recall", kwargs=query, tenant="b", session_id="s1")
        assert "Nothing" in text_of(theirs.content)


async def test_long_output_is_kept_as_a_file_of_the_memory_service(home: Path) -> None:
    async with tools_mesh(home, memory=True, max_output_bytes=1024) as mesh:
        await mesh.register(tenant="a")
        arguments = json.dumps({"do": "long", "text": "ab", "count": 3000})
        result = await mesh.invoke("test::shop/read", kwargs_json=arguments, tenant="a")
        assert result.full_output_file_id
        assert result.full_output_file_id in text_of(result.content)
        from stack_client.files import Files  # noqa: PLC0415

        files = Files(mesh.client.channel("memory"))
        with pytest.raises(Exception, match=result.full_output_file_id):  # of the tenant alone
            await files.download(result.full_output_file_id)
        stub = v1.FilesServiceStub(mesh.client.channel("memory"))
        request = v1.GetFileRequest(file_id=result.full_output_file_id)
        found = await stub.GetFile(request, metadata=(("x-tenant", "a"),))
        assert found.file.bytes == 6000
