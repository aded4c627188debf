"""Values of metrics: series by labels, times, widths, matchers."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llamastack import v1
from stack_client.errors import InvalidArgumentError, NotFoundError
from tests.telemetry.mesh import TelemetryMesh, event, of, telemetry_mesh

HOUR = 1_700_000_000 // 3600 * 3600
"""The begin of an hour."""


@pytest.fixture(params=["sqlite", "postgresql"])
async def mesh(home: Path, request: pytest.FixtureRequest) -> AsyncIterator[TelemetryMesh]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    async with telemetry_mesh(home, database=url) as mesh:
        yield mesh


async def measure(
    mesh: TelemetryMesh, at: float, value: float, *, unit: str = "s", tenant: str = "", **labels: Any
) -> None:
    made = event("ab", "cd", at=at, facts=labels, metric=v1.MetricEvent(metric="wait", value=value, unit=unit))
    await mesh.stub.LogEvent(v1.LogEventRequest(event=made), metadata=of(tenant))


async def values(mesh: TelemetryMesh, *matchers: Any, **more: Any) -> dict[str, list[tuple[float, float]]]:
    """Seconds since `HOUR` and value, by the labels' values."""
    found = await mesh.client.telemetry.metrics("wait", *matchers, **{"start": HOUR, **more})
    return {
        ",".join(label.value for label in one.labels): [
            (point.timestamp.ToNanoseconds() / 1e9 - HOUR, point.value) for point in one.values
        ]
        for one in found
    }


async def test_each_set_of_labels_is_a_series_with_its_values_in_order(mesh: TelemetryMesh) -> None:
    await measure(mesh, HOUR + 5, 2, model="a", kind="x")
    await measure(mesh, HOUR + 1, 1, kind="x", model="a")
    await measure(mesh, HOUR + 2, 7, model="b", kind="x")
    assert await values(mesh) == {"x,a": [(1, 1), (5, 2)], "x,b": [(2, 7)]}
    assert await values(mesh, start=HOUR + 2, end=HOUR + 4) == {"x,b": [(2, 7)]}
    assert await values(mesh, instant=True) == {"x,a": [(5, 2)], "x,b": [(2, 7)]}
    assert await values(mesh, instant=True, end=HOUR + 3) == {"x,a": [(1, 1)], "x,b": [(2, 7)]}


async def test_a_granularity_answers_the_mean_of_each_width(mesh: TelemetryMesh) -> None:
    for second, value in ((0, 1), (59, 3), (60, 10), (3599, 20), (3600, 100)):
        await measure(mesh, HOUR + second, value)
    assert await values(mesh, granularity="1m") == {"": [(0, 2), (60, 10), (3540, 20), (3600, 100)]}
    assert await values(mesh, granularity="1h") == {"": [(0, 8.5), (3600, 100)]}
    assert await values(mesh, granularity="30s") == {"": [(0, 1), (30, 3), (60, 10), (3570, 20), (3600, 100)]}
    assert [len(one) for one in (await values(mesh, granularity="1d")).values()] == [1]
    for wrong in ("", "1", "m", "0m", "1.5h", "1w", "1m; DROP TABLE"):
        with pytest.raises(InvalidArgumentError, match="is none; give a number of s, m, h or d"):
            await values(mesh, granularity=wrong)
    with pytest.raises(InvalidArgumentError, match="granularity cannot be given for an instant"):
        await values(mesh, granularity="1m", instant=True)


async def test_matchers_choose_series_and_patterns_match_the_whole_label(mesh: TelemetryMesh) -> None:
    for model in ("llama-1", "llama-10", "mistral"):
        await measure(mesh, HOUR, 1, model=model)
    for matcher, expected in (
        (("model", "=", "llama-1"), ["llama-1"]),
        (("model", "!=", "llama-1"), ["llama-10", "mistral"]),
        (("model", "=~", "llama-1"), ["llama-1"]),
        (("model", "=~", "llama-.*"), ["llama-1", "llama-10"]),
        (("model", "!~", "llama-.*"), ["mistral"]),
        (("model", "=~", "lla|mistral"), ["mistral"]),
        (("other", "=", ""), ["llama-1", "llama-10", "mistral"]),
        (("other", "!=", ""), []),
        (("model' OR '1'='1", "=", "x"), []),
    ):
        assert list(await values(mesh, matcher)) == expected, matcher
    with pytest.raises(InvalidArgumentError, match=r"label_matchers\[0\].value is no pattern of RE2"):
        await values(mesh, ("model", "=~", "(a"))
    with pytest.raises(InvalidArgumentError, match=r"label_matchers\[0\].name is missing"):
        await values(mesh, ("", "=", "a"))


async def test_a_metric_that_nobody_recorded_is_not_found_and_an_empty_time_is_empty(mesh: TelemetryMesh) -> None:
    await measure(mesh, HOUR, 1)
    with pytest.raises(NotFoundError, match="no metric 'nosuch'"):
        await mesh.client.telemetry.metrics("nosuch", start=0)
    assert await values(mesh, start=HOUR + 1) == {}
    with pytest.raises(InvalidArgumentError, match="start_time is later than end_time"):
        await values(mesh, start=HOUR + 1, end=HOUR)
    with pytest.raises(Exception, match="start_time is missing"):
        await mesh.stub.QueryMetrics(v1.QueryMetricsRequest(metric_name="wait"))


async def test_a_tenant_sees_its_own_values(mesh: TelemetryMesh) -> None:
    await measure(mesh, HOUR, 1, tenant="blue", who="blue")
    await measure(mesh, HOUR, 2, tenant="red", who="red")
    request = v1.QueryMetricsRequest(metric_name="wait")
    request.start_time.FromSeconds(HOUR)
    for tenant, expected in (("blue", [1]), ("red", [2]), ("", [1, 2])):
        found = await mesh.stub.QueryMetrics(request, metadata=of(tenant))
        assert [point.value for one in found.data for point in one.values] == expected
    with pytest.raises(Exception, match="no metric 'wait'"):
        await mesh.stub.QueryMetrics(request, metadata=of("green"))


async def test_labels_that_are_no_texts_are_written_as_json_does(mesh: TelemetryMesh) -> None:
    await measure(mesh, HOUR, 1, a=5, b=True, c=None, d=0.5)
    assert list(await values(mesh, ("a", "=", "5"))) == ["5,true,null,0.5"]


async def test_values_in_different_units_keep_theirs(mesh: TelemetryMesh) -> None:
    await measure(mesh, HOUR, 1, unit="s")
    await measure(mesh, HOUR + 1, 1000, unit="ms")
    (one,) = await mesh.client.telemetry.metrics("wait", start=HOUR, end=time.time())
    assert [point.unit for point in one.values] == ["s", "ms"]
