"""What is wrong with input files is said by line and code."""

import json
from pathlib import Path
from typing import Any

import pytest

from llamastack import v1
from services.gateway.batches.checks import Checker
from services.gateway.batches.config import BatchesConfig
from tests.gateway.batches.world import CHAT, World, gateway, jsonl, request


def checked(content: bytes, *, size: int = 7, endpoint: str = CHAT, **config: Any) -> Checker:
    """The file read in small pieces."""
    checker = Checker(endpoint=endpoint, config=BatchesConfig(**config))
    for start in range(0, len(content), size):
        checker.feed(content[start : start + size])
    checker.feed(b"", last=True)
    checker.finish()
    return checker


def codes(checker: Checker) -> list[tuple[str, int, str]]:
    return [(error.code, error.line, error.param) for error in checker.errors]


WRONG = [
    (b"{", "invalid_json_line", ""),
    (b"[1]", "invalid_json_line", ""),
    (b'"\xff"', "invalid_json_line", ""),
    (b'{"a": NaN}', "invalid_json_line", ""),
    (b"[" * 100_000, "invalid_json_line", ""),
    ({"custom_id": None}, "missing_required_parameter", "custom_id"),
    ({"custom_id": 7}, "invalid_request", "custom_id"),
    ({"custom_id": "a\u0000b"}, "invalid_request", "custom_id"),
    ({"custom_id": "a" * 513}, "invalid_request", "custom_id"),
    ({"method": None}, "missing_required_parameter", "method"),
    ({"method": "GET"}, "invalid_request", "method"),
    ({"url": None}, "missing_required_parameter", "url"),
    ({"url": "/v1/embeddings"}, "invalid_url", "url"),
    ({"body": None}, "missing_required_parameter", "body"),
    ({"body": "text"}, "invalid_request", "body"),
    ({"body": {}}, "missing_required_parameter", "body.model"),
    ({"body": {"model": 1}}, "invalid_request", "body.model"),
    ({"body": {"model": "m", "stream": True}}, "streaming_unsupported", "body.stream"),
    ({"body": {"model": "m", "background": True}}, "invalid_request", "body.background"),
    ({"body": {"model": "m", "deep": json.loads("[" * 300 + "]" * 300)}}, "invalid_json_line", "body"),
    ({"custom_id": "good"}, "duplicate_custom_id", "custom_id"),
]


@pytest.mark.parametrize(("line", "code", "param"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_line_is_refused_by_code_field_and_number(line: Any, code: str, param: str) -> None:
    good = jsonl([request("good")])
    bad = line if isinstance(line, bytes) else json.dumps({**request("bad"), **line}).encode()
    checker = checked(good + b"\n" + bad + b"\n" + jsonl([request("also good")]), size=4096)
    assert codes(checker) == [(code, 3, param)], "blank lines are counted, but are no requests"
    assert checker.errors[0].message


def test_a_file_is_read_alike_in_pieces_of_any_size() -> None:
    content = b"\xef\xbb\xbf" + jsonl([request(f"line {n}", text="Grüße 😀") for n in range(5)]).rstrip(b"\n") + b"\r"
    for size in (1, 2, 3, 100, 10_000):
        checker = checked(content, size=size)
        assert not checker.errors
        assert checker.count == 5
        assert checker.model == "small"


def test_files_without_requests_and_with_too_many_are_refused_as_a_whole() -> None:
    for content in (b"", b"\n \n"):
        empty = checked(content)
        assert [error.code for error in empty.errors] == ["empty_file"]
        assert not empty.errors[0].HasField("line")
    many = checked(jsonl([request(str(n)) for n in range(5)]), max_lines=4)
    assert [error.code for error in many.errors] == ["too_many_lines"]
    assert not checked(jsonl([request(str(n)) for n in range(4)]), max_lines=4).errors


def test_a_line_that_is_too_long_is_refused_without_holding_it() -> None:
    long = jsonl([request("long", text="x" * 5000)])
    checker = checked(long + jsonl([request("short")]) + long, max_line_bytes=1000)
    assert codes(checker) == [("line_too_long", 1, ""), ("line_too_long", 3, "")]
    assert len(checker._rest) <= 1000


def test_after_a_hundred_errors_the_rest_is_not_read() -> None:
    checker = checked(b"{\n" * 500, size=100)
    assert [error.line for error in checker.errors] == list(range(1, 101))
    assert checker.count == 100


def test_moderations_need_no_model() -> None:
    line = {**request("a"), "url": "/v1/moderations", "body": {"input": "hello"}}
    assert not checked(jsonl([line]), endpoint="/v1/moderations").errors


async def test_a_wrong_file_fails_its_batch_with_all_errors_and_runs_nothing(world: World) -> None:
    lines = [request("a"), request("a"), request("b", model="none"), {**request("c"), "url": "/v1/x"}, request("d")]
    done = await world.run(lines)
    assert done.status == v1.BATCH_STATUS_FAILED
    assert done.failed_at.seconds
    found = [(error.line, error.code) for error in done.errors.data]
    assert found == [(2, "duplicate_custom_id"), (3, "model_not_found"), (4, "invalid_url")]
    assert "'none'" in done.errors.data[1].message
    assert not world.script.calls
    assert not done.HasField("output_file_id")


async def test_a_file_that_was_deleted_before_it_was_read_fails_its_batch(tmp_path: Path, memory: str) -> None:
    async with gateway(tmp_path, memory, batches_at_once=0) as world:
        batch = await world.start([request("a")])
        await world.client.files.delete(batch.input_file_id)
    async with gateway(tmp_path, memory) as world:
        done = await world.client.batches.wait(batch.id)
        assert [error.code for error in done.errors.data] == ["file_not_found"]


async def test_requests_of_several_megabytes_are_read_in_pieces(world: World) -> None:
    lines = [request(f"line {n}", padding="x" * 300_000) for n in range(20)]
    done = await world.run(lines)
    assert done.request_counts.completed == 20
    mixed = await world.run([request("a"), request("b", model="large")])
    assert not mixed.HasField("model")
