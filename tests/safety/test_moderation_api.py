import json
from typing import Any

import pytest

from llamastack import v1
from services.safety.shield import Shield
from stack_client.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    StackError,
    UnavailableError,
)
from tests.safety.endpoints import Reply, as_json, endpoint
from tests.safety.guard_models import fact, judge, shield_of


def result(scores: dict[str, float], *, flagged: bool = True) -> dict[str, Any]:
    categories = {name: score >= 0.5 for name, score in scores.items()}
    return {"results": [{"flagged": flagged, "categories": categories, "category_scores": scores}]}


async def shield_at(url: str, **params: Any) -> Shield:
    return await shield_of("moderation-api", None, model="moderator", base_url=url, **params)


async def test_scores_are_the_endpoints_own_under_the_common_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODERATION_KEY", "secret")
    scores = {"violence": 0.9, "illicit/violent": 0.4, "harassment": 0.6, "sexual": 0.01}
    answer = result(scores)
    with endpoint(as_json(answer)) as served:
        shield = await shield_at(served.url, api_key_env="MODERATION_KEY")
        found = await judge(shield, "a text")
    assert served.paths == ["/v1/moderations"]
    assert served.asked == [{"model": "moderator", "input": "a text"}]
    assert served.keys == ["Bearer secret"]
    assert found.score == 0.9
    assert found.score_kind == v1.SCORE_KIND_MODEL_PROBABILITY
    assert found.codes == ("S1", "harassment")
    assert found.category_scores == {"S1": 0.9, "harassment": 0.6, "S12": 0.01}
    assert fact(found, "categories") == ["violence", "harassment"]
    assert (found.guard_calls, found.guard_bytes, found.model) == (1, 6, "moderator")


async def test_a_threshold_of_our_own_decides_over_the_scores() -> None:
    with endpoint(as_json(result({"hate": 0.3}, flagged=False))) as served:
        shield = await shield_at(served.url)
        assert (await judge(shield, "x", threshold=0.2)).codes == ("S10",)
        assert (await judge(shield, "x", threshold=0.4)).codes == ()


async def test_an_endpoint_without_scores_gives_its_flag_and_no_probability() -> None:
    answer = {"results": [{"flagged": True, "categories": {}}]}
    with endpoint(as_json(answer)) as served:
        found = await judge(await shield_at(served.url), "x")
    assert (found.codes, found.score, found.category_scores) == (("unspecified",), 1.0, {})
    assert (found.score_kind, fact(found, "scored_by")) == (v1.SCORE_KIND_UNSPECIFIED, "flag")


@pytest.mark.parametrize(
    "body",
    [b"", b"not json", b"[]", b'{"results": []}', b'{"results": [{}]}', b'{"results": [1]}',
     json.dumps(result({"hate": 2.0})).encode(),
     b'{"results": [{"flagged": false, "category_scores": {"hate": NaN}}]}',
     b'{"results": [{"flagged": false, "category_scores": {"hate": -Infinity}}]}',
     b'{"results": [{"flagged": false, "category_scores": {"hate": 1e999}}]}'],
)  # fmt: skip
async def test_an_answer_of_another_shape_is_no_judgement(body: bytes) -> None:
    with endpoint(Reply(body)) as served:
        found = await judge(await shield_at(served.url), "x")
    assert (found.score, found.codes) == (None, ())
    assert "no moderation" in found.failure


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(status=401), FailedPreconditionError),
        (Reply(status=404), FailedPreconditionError),
        (Reply(status=302, headers={"location": "http://127.0.0.1:1/v1/moderations"}), FailedPreconditionError),
        (Reply(status=429), UnavailableError),
        (Reply(status=500), UnavailableError),
        (Reply(b" " * 300_000), UnavailableError),
    ],
)
async def test_every_other_answer_raises(reply: Reply, error: type[StackError]) -> None:
    with endpoint(reply) as served:
        shield = await shield_at(served.url)
        with pytest.raises(error):
            await judge(shield, "x")
        assert len(served.asked) == 1


async def test_a_compressed_answer_is_never_unpacked() -> None:
    with endpoint(Reply(b"\x1f\x8b", headers={"content-encoding": "gzip"})) as served:
        assert (await judge(await shield_at(served.url), "x")).failure


async def test_an_endpoint_that_hangs_is_given_up() -> None:
    with endpoint(Reply(hang=True)) as served:
        shield = await shield_at(served.url, timeout=0.2)
        with pytest.raises(DeadlineExceededError, match=r"within 0\.2 s"):
            await judge(shield, "x")


async def test_an_endpoint_that_is_away_is_unavailable() -> None:
    with endpoint(Reply()) as served:
        pass
    with pytest.raises(UnavailableError, match="cannot be asked"):
        await judge(await shield_at(served.url), "x")


@pytest.mark.parametrize(
    "params",
    [{}, {"base_url": "ftp://host/v1"}, {"base_url": "http://"}, {"base_url": "http://[bad"},
     {"base_url": "http://a", "api_key_env": "NOT_SET_ANYWHERE"}, {"base_url": "http://a", "timeout": 0},
     {"base_url": "http://a", "key": "secret"}],
)  # fmt: skip
async def test_parameters_that_cannot_be_used_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        await shield_of("moderation-api", None, **params)
    assert raised.value.field.startswith("params.")
