"""Traces, spans and trees are found by what they say; no name or value of a caller becomes part of a query."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from llamastack import v1
from stack_client.calls import unary
from stack_client.errors import InvalidArgumentError, NotFoundError, UnsupportedError
from tests.telemetry.mesh import TelemetryMesh, end, event, of, start, telemetry_mesh

BEGIN = 1_700_000_000.0


@pytest.fixture(params=["sqlite", "postgresql"])
async def mesh(home: Path, request: pytest.FixtureRequest) -> AsyncIterator[TelemetryMesh]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    async with telemetry_mesh(home, database=url) as mesh:
        yield mesh


async def log(mesh: TelemetryMesh, *events: v1.TelemetryEvent, tenant: str = "") -> None:
    for one in events:
        await mesh.stub.LogEvent(v1.LogEventRequest(event=one), metadata=of(tenant))


def span(
    trace: str, name: str, *, parent: str | None = None, at: float = 0, seconds: float = 1, **facts: Any
) -> list[v1.TelemetryEvent]:
    """A span whose id is made of its name."""
    span_id = name.encode().hex()
    parent = None if parent is None else parent.encode().hex()
    return [
        event(trace, span_id, at=BEGIN + at, facts=facts, structured_log=start(name, parent)),
        event(trace, span_id, at=BEGIN + at + seconds, structured_log=end()),
    ]


async def traces(mesh: TelemetryMesh, *filters: Any, **more: Any) -> list[str]:
    return [one.trace_id for one in await mesh.client.telemetry.query_traces(*filters, **more)]


async def names(mesh: TelemetryMesh, *filters: Any, **more: Any) -> list[str]:
    return sorted(one.name for one in await mesh.client.telemetry.spans(*filters, **more))


async def test_conditions_compare_attributes_by_their_type(mesh: TelemetryMesh) -> None:
    facts: dict[str, Any] = {"text": "b", "number": 5, "big": 1e30, "yes": True, "none": None, "odd \"key' $.%": "x"}
    await log(mesh, *span("aa", "one", **facts), *span("bb", "two", text="c", number=6.5, yes=False))
    for filters, expected in (
        ([("text", "eq", "b")], ["one"]),
        ([("text", "ne", "b")], ["two"]),
        ([("text", "gt", "b")], ["two"]),
        ([("text", "lt", "c")], ["one"]),
        ([("number", "eq", 5)], ["one"]),
        ([("number", "gt", 5)], ["two"]),
        ([("number", "lt", 100)], ["one", "two"]),
        ([("number", "eq", "5")], []),
        ([("text", "gt", 1)], []),
        ([("yes", "eq", True)], ["one"]),
        ([("yes", "eq", 1)], []),
        ([("none", "eq", None)], ["one"]),
        ([("big", "ne", 1)], ["one", "two"]),
        ([("missing", "ne", "x")], ["one", "two"]),
        ([("missing", "eq", None)], []),
        ([("odd \"key' $.%", "eq", "x")], ["one"]),
        ([("text", "ne", "x"), ("number", "gt", 5.5)], ["two"]),
        ([("' OR 1=1 --", "eq", "x")], []),
        ([("text", "eq", "' OR 1=1 --")], []),
    ):
        assert await names(mesh, *filters) == expected, filters


async def test_traces_are_found_by_their_root_and_come_in_the_order_asked_for(mesh: TelemetryMesh) -> None:
    await log(mesh, *span("a1", "first", at=0, seconds=5, kind="x"), *span("a1", "child", parent="first", kind="y"))
    await log(mesh, *span("b2", "second", at=2, seconds=1, kind="y"))
    await log(mesh, *span("c3", "third", at=1, seconds=9, kind="y"))
    assert await traces(mesh) == ["b2", "c3", "a1"]
    assert await traces(mesh, ("kind", "eq", "y")) == ["b2", "c3"]
    assert await traces(mesh, order_by=["start_time"]) == ["a1", "c3", "b2"]
    assert await traces(mesh, order_by=["-duration"]) == ["c3", "a1", "b2"]
    assert await traces(mesh, order_by=["end_time"]) == ["b2", "a1", "c3"]
    assert await traces(mesh, offset=1, limit=1) == ["c3"]
    with pytest.raises(InvalidArgumentError, match="order_by 'name; DROP TABLE' is unknown"):
        await traces(mesh, order_by=["name; DROP TABLE"])


async def test_pages_of_traces_and_spans_hold_each_once_while_others_come(mesh: TelemetryMesh) -> None:
    for number in range(7):
        await log(mesh, *span(f"a{number}", f"span {number}", at=number))
    for method, request in (
        (mesh.stub.QueryTraces, v1.QueryTracesRequest(page_size=3)),
        (mesh.stub.QuerySpans, v1.QuerySpansRequest(page_size=3)),
    ):
        seen = []
        while True:
            page = await method(request)
            seen += [one.trace_id for one in page.data]
            await log(mesh, *span(f"f{len(seen)}", "late", at=100 + len(seen)))
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert [one for one in seen if one.startswith("a")] == [f"a{number}" for number in reversed(range(7))]
        request.attribute_filters.add(key="x", op=v1.QUERY_CONDITION_OP_EQ).value.string_value = "other"
        with pytest.raises(Exception, match="page_token is damaged or belongs to another list or filter"):
            await method(request)


async def test_the_root_is_the_span_without_parent_else_the_first_whose_parent_is_unknown(mesh: TelemetryMesh) -> None:
    client = mesh.client.telemetry
    await log(mesh, *span("ab", "late child", parent="nobody", at=2), *span("ab", "early child", parent="nobody", at=1))
    assert (await client.trace("ab")).root_span_id == b"early child".hex()
    await log(mesh, *span("ab", "root", at=3, seconds=4))
    trace = await client.trace("AB")
    assert trace.root_span_id == b"root".hex()
    assert (trace.start_time.ToSeconds(), trace.end_time.ToSeconds()) == (BEGIN + 1, BEGIN + 7)


async def test_a_tree_ends_at_its_depth_and_says_only_what_is_wanted(mesh: TelemetryMesh) -> None:
    client = mesh.client.telemetry
    chain = ["a", "b", "c", "d"]
    for parent, name in zip([None, *chain], chain, strict=False):
        await log(mesh, *span("ab", name, parent=parent, said=name, more=1))
    await log(mesh, *span("cd", "elsewhere", parent="a"))
    tree = await client.tree(b"b".hex(), max_depth=1, attributes=["said"])
    assert sorted(one.name for one in tree.values()) == ["b", "c"]
    assert dict(tree[b"c".hex()].attributes.items()) == {"said": "c"}
    assert sorted(one.name for one in (await client.tree(b"a".hex())).values()) == chain
    assert await names(mesh, ("more", "eq", 1), max_depth=2) == ["a", "b", "c"]
    assert await names(mesh, max_depth=1) == ["a", "b", "elsewhere"]
    with pytest.raises(InvalidArgumentError, match="max_depth is 0"):
        await client.tree(b"a".hex(), max_depth=0)


async def test_a_ring_of_spans_ends(mesh: TelemetryMesh) -> None:
    await log(mesh, *span("ab", "a", parent="b"), *span("ab", "b", parent="a"))
    assert sorted(one.name for one in (await mesh.client.telemetry.tree(b"a".hex())).values()) == ["a", "b"]
    assert await names(mesh, max_depth=3) == []


async def test_the_end_of_a_span_may_come_before_its_beginning_and_both_may_come_again(mesh: TelemetryMesh) -> None:
    begin, finish = span("ab", "one", text="x")
    for one in (finish, begin, begin, finish):
        await log(mesh, one)
    found = await mesh.client.telemetry.span("ab", b"one".hex())
    assert (found.name, found.status, dict(found.attributes.items())) == ("one", v1.SPAN_STATUS_OK, {"text": "x"})
    assert found.end_time.ToSeconds() - found.start_time.ToSeconds() == 1


async def test_a_span_that_has_not_ended_runs(mesh: TelemetryMesh) -> None:
    await log(mesh, span("ab", "one")[0])
    trace = await mesh.client.telemetry.trace("ab")
    found = await mesh.client.telemetry.span("ab", trace.root_span_id)
    assert not trace.HasField("end_time")
    assert not found.HasField("end_time")
    assert found.status == v1.SPAN_STATUS_UNSPECIFIED


async def test_a_tenant_sees_its_own_spans_and_nobody_in_particular_sees_all(mesh: TelemetryMesh) -> None:
    await log(mesh, *span("ab", "entry"))
    await log(mesh, *span("ab", "blue work", parent="entry", at=1), tenant="blue")
    await log(mesh, *span("ab", "red work", parent="entry", at=2), tenant="red")
    await log(mesh, *span("cd", "red only"), tenant="red")

    async def seen(tenant: str) -> list[str]:
        page = await mesh.stub.QuerySpans(v1.QuerySpansRequest(), metadata=of(tenant))
        return sorted(one.name for one in page.data)

    assert await seen("blue") == ["blue work"]
    assert await seen("red") == ["red only", "red work"]
    assert await seen("green") == []
    assert await seen("") == ["blue work", "entry", "red only", "red work"]
    found = await mesh.stub.GetTrace(v1.GetTraceRequest(trace_id="ab"), metadata=of("blue"))
    assert found.trace.root_span_id == b"blue work".hex()
    assert (await mesh.client.telemetry.trace("ab")).root_span_id == b"entry".hex()
    for call in (
        mesh.stub.GetTrace(v1.GetTraceRequest(trace_id="cd"), metadata=of("blue")),
        mesh.stub.GetSpan(v1.GetSpanRequest(trace_id="ab", span_id=b"red work".hex()), metadata=of("blue")),
        mesh.stub.GetSpanTree(v1.GetSpanTreeRequest(span_id=b"red work".hex()), metadata=of("blue")),
    ):
        with pytest.raises(Exception, match="NOT_FOUND"):
            await call
    tree = await mesh.stub.GetSpanTree(v1.GetSpanTreeRequest(span_id=b"blue work".hex()), metadata=of("blue"))
    assert list(tree.data) == [b"blue work".hex()]


async def test_what_is_missing_or_wrong_is_refused_by_name(mesh: TelemetryMesh) -> None:
    client = mesh.client.telemetry
    wrong: list[tuple[v1.TelemetryEvent, str]] = [
        (event("", "ab", structured_log=end()), "event.trace_id is missing"),
        (event("xyz", "ab", structured_log=end()), "event.trace_id is no id"),
        (event("ab", "a b", structured_log=end()), "event.span_id is no id"),
        (event("ab", "ab"), "event.event is missing"),
        (event("ab", "ab", structured_log=v1.StructuredLog()), "structured_log.payload is missing"),
        (event("ab", "ab", structured_log=start("")), "span_start.name is missing"),
        (event("ab", "ab", structured_log=end(v1.SPAN_STATUS_UNSPECIFIED)), "span_end.status is none"),
        (event("ab", "ab", metric=v1.MetricEvent(value=1)), "event.metric.metric is missing"),
        (event("ab", "ab", metric=v1.MetricEvent(metric="m", value=float("nan"))), "event.metric.value is no number"),
        (event("ab", "ab", at=-5, structured_log=end()), "event.timestamp is out of range"),
    ]
    for one, message in wrong:
        with pytest.raises(InvalidArgumentError, match=message):
            await client.log_event(one)
    with pytest.raises(InvalidArgumentError, match="ttl_seconds is 0"):
        await client.log_event(event("ab", "ab", structured_log=end()), ttl_seconds=0)
    for key, op, value in (("", "eq", 1), ("a", "gt", True), ("a", "lt", None), ("a", "eq", float("inf"))):
        with pytest.raises(InvalidArgumentError, match=r"attribute_filters\[0\]"):
            await client.spans((key, op, value))
    for missing in (client.trace("ab"), client.span("ab", "cd"), client.tree("ef")):
        with pytest.raises(NotFoundError, match="it may be too old, or not sent yet"):
            await missing
    assert await client.spans() == []


async def test_any_text_can_be_stored_and_found(mesh: TelemetryMesh) -> None:
    odd = "nul \0, quote ', \U0001f999"
    await log(mesh, *span("ab", odd, said=odd, nested={"a": [1, "\0", None]}))
    (found,) = await mesh.client.telemetry.spans(("said", "eq", odd))
    assert found.name == odd.replace("\0", "\ufffd")
    assert json_format.MessageToDict(found.attributes)["nested"] == {"a": [1, "\ufffd", None]}


async def test_logs_are_taken(mesh: TelemetryMesh) -> None:
    line = v1.UnstructuredLog(message="hello", severity=v1.LOG_SEVERITY_WARN)
    await mesh.client.telemetry.log_event(event("ab", "cd", unstructured_log=line))


async def test_spans_cannot_be_saved_to_a_dataset_without_the_service_that_keeps_them(mesh: TelemetryMesh) -> None:
    with pytest.raises(UnsupportedError, match="evaluation service"):
        await unary(mesh.stub.SaveSpansToDataset(v1.SaveSpansToDatasetRequest(dataset_id="d")))
