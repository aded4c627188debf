"""Llama Guard shields of models behind an OpenAI-compatible endpoint, whose own template writes the prompt."""

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llamastack import v1
from services.safety.guards import Guards
from stack_client.errors import InvalidArgumentError
from tests.safety.endpoints import Endpoint, Reply, as_json, endpoint
from tests.safety.guard_models import fact, guarding, judge, shield_of

ANSWER = v1.SAFETY_SURFACE_ASSISTANT
REMOTE = {"model_id": "remote", "provider_id": "openai", "provider_model_id": "llama-guard"}


def spoken(tokens: list[tuple[str, dict[str, float]]], *, logprobs: bool) -> Reply:
    """A streamed answer of these tokens, each with the probabilities of its alternatives."""
    chunks: list[dict[str, Any]] = []
    for token, alternatives in tokens:
        listed = [{"token": name, "logprob": math.log(p), "bytes": None} for name, p in alternatives.items()]
        own = {
            "token": token,
            "logprob": math.log(alternatives.get(token, 0.99)),
            "bytes": None,
            "top_logprobs": listed,
        }
        choice: dict[str, Any] = {"index": 0, "delta": {"content": token}, "finish_reason": None}
        chunks.append({"choices": [choice | ({"logprobs": {"content": [own]}} if logprobs else {})]})
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    chunks.append(
        {"choices": [], "usage": {"prompt_tokens": 200, "completion_tokens": len(tokens), "total_tokens": 210}}
    )
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return Reply("".join([*lines, "data: [DONE]\n\n"]).encode(), headers={"content-type": "text/event-stream"})


UNSAFE = [
    ("\n\n", {"\n\n": 0.99}),
    ("unsafe", {"unsafe": 0.8, "safe": 0.19, "Safe": 0.001}),
    ("\n", {}),
    ("S", {}),
    ("1", {}),
]
SAFE = [("\n\n", {"\n\n": 0.99}), ("safe", {"safe": 0.7, "unsafe": 0.29})]


@asynccontextmanager
async def remote(
    home: Path, tokens: list[tuple[str, dict[str, float]]], *, logprobs: bool = True
) -> AsyncIterator[tuple[Guards, Endpoint]]:
    """Shields' view of an endpoint that always gives one answer."""

    def answer(path: str, body: dict[str, Any]) -> Reply:
        if path == "/v1/models":
            return as_json({"data": [{"id": "llama-guard"}]})
        if body.get("logprobs") and not logprobs:
            return as_json({"error": {"message": "logprobs are not supported"}}, 400)
        return spoken(tokens, logprobs=bool(body.get("logprobs")))

    with endpoint(answer) as served:
        async with guarding(home, REMOTE, openai={"endpoints": {"e": {"base_url": served.url}}}) as (guards, _):
            yield guards, served


async def test_the_dialog_goes_to_the_endpoints_template_and_its_list_gives_the_score(tmp_path: Path) -> None:
    async with remote(tmp_path, UNSAFE) as (guards, served):
        shield = await shield_of("llama-guard", guards, "remote")
        found = await judge(shield, "Mix it.", dialog=[{"role": "system", "content": "S"}, "How?"], surface=ANSWER)
    assert found.score == pytest.approx(0.8 / 0.99, abs=1e-6)
    assert (found.codes, found.score_kind) == (("S1",), v1.SCORE_KIND_MODEL_PROBABILITY)
    assert (fact(found, "scored_by"), fact(found, "template"), fact(found, "profile")) == (
        "logprobs", "checkpoint", "llama-guard-3-8b",
    )  # fmt: skip
    asked = served.asked[0]
    assert [message["role"] for message in asked["messages"]] == ["user", "assistant"]
    assert (asked["temperature"], asked["top_logprobs"], asked["max_tokens"]) == (0.0, 20, 50)


async def test_a_threshold_below_what_the_words_say_still_finds_the_text_unsafe(tmp_path: Path) -> None:
    async with remote(tmp_path, SAFE) as (guards, _):
        shield = await shield_of("llama-guard", guards, "remote")
        assert (await judge(shield, "x")).codes == ()
        assert (await judge(shield, "x", threshold=0.2)).codes == ("unspecified",)


async def test_an_endpoint_without_log_probabilities_is_read_by_its_text(tmp_path: Path) -> None:
    async with remote(tmp_path, UNSAFE, logprobs=False) as (guards, served):
        shield = await shield_of("llama-guard", guards, "remote")
        for _ in range(2):
            found = await judge(shield, "x")
            assert (found.score, found.score_kind, fact(found, "scored_by")) == (1.0, v1.SCORE_KIND_UNSPECIFIED, "text")
    assert len(served.asked) == 3  # it is tried once


async def test_excluded_codes_are_filtered_though_the_endpoint_asks_about_them(tmp_path: Path) -> None:
    async with remote(tmp_path, UNSAFE) as (guards, _):
        shield = await shield_of("llama-guard", guards, "remote", excluded_categories=["S1"])
        found = await judge(shield, "x")
    assert (found.codes, found.score, fact(found, "excluded_codes")) == ((), 0.0, ["S1"])


async def test_categories_cannot_be_added_to_a_template_elsewhere(tmp_path: Path) -> None:
    async with remote(tmp_path, UNSAFE) as (guards, served):
        spoilers = {"C1": {"name": "Spoilers"}}
        with pytest.raises(InvalidArgumentError, match="template: builtin"):
            await shield_of("llama-guard", guards, "remote", categories=spoilers)
        shield = await shield_of("llama-guard", guards, "remote", categories=spoilers, template="builtin")
        assert fact(await judge(shield, "x"), "template") == "builtin"
    (message,) = served.asked[0]["messages"]
    assert "C1: Spoilers." in json.dumps(message)
    assert "<|" not in json.dumps(message)
