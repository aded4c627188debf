"""Reading an input file: what is a request, and what is wrong with the others."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from llamastack import v1
from services.gateway.batches.config import BatchesConfig
from services.gateway.batches.steps import Line

MAX_ERRORS = 100
"""After so many the rest of the file is not read."""
MAX_CUSTOM_ID = 512
MODELLESS = ("/v1/moderations",)
"""Endpoints whose requests need no model."""
_MARK = b"\xef\xbb\xbf"  # of UTF-8, at the head of files from some editors


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a piece of the file held."""

    lines: list[Line]
    """Its requests."""
    models: dict[str, int]
    """Models that no request before had, with the lines that name them."""


class LineError(Exception):
    """A line is no request.

    Args:
        code: Of `BatchError`.
        message: What is wrong and what to do.
        param: The field, or none.
    """

    def __init__(self, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


@dataclass(kw_only=True)
class Checker:
    """Reads the lines of one file, piece by piece; blank lines are none. Runs in a thread."""

    endpoint: str
    """What every request must be sent to."""
    config: BatchesConfig
    """Bounds."""
    errors: list[v1.BatchError] = field(default_factory=list)
    """What is wrong, `MAX_ERRORS` at most."""
    count: int = 0
    """Requests, right or wrong."""
    _line: int = 0
    _rest: bytearray = field(default_factory=bytearray)
    _skipping: bool = False  # the rest of a line that is too long
    _seen: dict[str, int] = field(default_factory=dict)
    _models: dict[str, int] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether nothing more needs to be read."""
        return len(self.errors) >= MAX_ERRORS or self.count > self.config.max_lines

    @property
    def model(self) -> str | None:
        """The model that all requests name; None when they do not."""
        return next(iter(self._models)) if len(self._models) == 1 else None

    def feed(self, piece: bytes, *, last: bool = False) -> Read:
        """Read some more of the file; `last` says that it ends with this piece."""
        found: list[Line] = []
        known = set(self._models)
        for raw in self._split(piece, last=last):
            if self.full:
                break
            if raw is None:
                most = self.config.max_line_bytes
                self.refuse("line_too_long", f"the line has more than {most} bytes; send less in one request")
                self.count += 1
            elif raw:
                self._read(raw, found)
        return Read(lines=found, models={name: line for name, line in self._models.items() if name not in known})

    def refuse(
        self, code: str, message: str, *, param: str | None = None, line: int | None = None, whole: bool = False
    ) -> None:
        """Note an error of a line, the current one unless another is named, or of the whole file."""
        if len(self.errors) < MAX_ERRORS:
            where = None if whole else line or self._line
            self.errors.append(v1.BatchError(code=code, message=message, param=param, line=where))

    def finish(self) -> None:
        """Note what is wrong with the file as a whole; the errors are in the order of the lines then."""
        if self.count > self.config.max_lines:
            message = f"the file has more than {self.config.max_lines} requests; make several batches of it"
            self.errors.append(v1.BatchError(code="too_many_lines", message=message))
        elif not self.count:
            self.errors.append(v1.BatchError(code="empty_file", message="the file has no request; send one a line"))
        self.errors.sort(key=lambda error: error.line)
        del self.errors[MAX_ERRORS:]

    def _split(self, piece: bytes, *, last: bool) -> Iterator[bytes | None]:
        """The lines that end in this piece; None stands for one that is too long."""
        self._rest += piece
        start = 0
        while (end := self._rest.find(b"\n", start)) >= 0:
            self._line += 1
            yield self._whole(bytes(self._rest[start:end]))
            start = end + 1
        del self._rest[:start]
        if len(self._rest) > self.config.max_line_bytes:
            self._skipping = True
            self._rest.clear()
        if last and (self._rest or self._skipping):
            self._line += 1
            yield self._whole(bytes(self._rest))

    def _whole(self, raw: bytes) -> bytes | None:
        if self._skipping or len(raw) > self.config.max_line_bytes:
            self._skipping = False
            return None
        return (raw.removeprefix(_MARK) if self._line == 1 else raw).strip()

    def _read(self, raw: bytes, found: list[Line]) -> None:
        try:
            custom_id, body = self._check(raw)
            found.append(Line(place=self.count, custom_id=custom_id, body=orjson.dumps(body)))
        except LineError as error:
            self.refuse(error.code, error.message, param=error.param)
        except orjson.JSONEncodeError as error:  # it reads deeper than it writes
            self.refuse("invalid_json_line", f"the body is nested too deep: {error}", param="body")
        self.count += 1

    def _check(self, raw: bytes) -> tuple[str, dict[str, Any]]:
        try:
            line = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise LineError("invalid_json_line", f"the line is no JSON: {error}") from error
        if not isinstance(line, dict):
            raise LineError("invalid_json_line", "the line is no JSON object; send one with custom_id, url and body")
        custom_id = self._custom_id(line)
        method = _required(line, "method", str)
        if method != "POST":
            raise LineError("invalid_request", f"method is {method[:40]!r}; only POST can run", param="method")
        url = _required(line, "url", str)
        if url != self.endpoint:
            message = f"url is {url[:80]!r}; the batch runs requests of {self.endpoint} only"
            raise LineError("invalid_url", message, param="url")
        return custom_id, self._body(_required(line, "body", dict))

    def _custom_id(self, line: dict[str, Any]) -> str:
        custom_id: str = _required(line, "custom_id", str)
        if "\0" in custom_id or len(custom_id) > MAX_CUSTOM_ID:  # PostgreSQL keeps no NUL
            message = f"custom_id {custom_id[:40]!r}: give at most {MAX_CUSTOM_ID} characters, and no NUL"
            raise LineError("invalid_request", message, param="custom_id")
        before = self._seen.setdefault(custom_id, self._line)
        if before != self._line:
            message = f"custom_id {custom_id[:40]!r} is that of line {before} too; give each request its own"
            raise LineError("duplicate_custom_id", message, param="custom_id")
        return custom_id

    def _body(self, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("stream"):
            message = "a batch has nobody to stream to; leave stream out"
            raise LineError("streaming_unsupported", message, param="body.stream")
        if body.get("background"):
            message = "a batch runs in the background by itself; leave background out"
            raise LineError("invalid_request", message, param="body.background")
        if self.endpoint in MODELLESS and body.get("model") is None:
            return body
        model = _required(body, "model", str, within="body.")
        if not model.isprintable():
            raise LineError("invalid_request", f"model {model[:40]!r} cannot be printed", param="body.model")
        self._models.setdefault(model, self._line)
        return body


def _required(values: dict[str, Any], name: str, kind: type, *, within: str = "") -> Any:  # noqa: ANN401 (of the kind given)
    value = values.get(name)
    if value is None or value == "":
        raise LineError("missing_required_parameter", f"{within}{name} is missing", param=within + name)
    if not isinstance(value, kind):
        said = "a string" if kind is str else "an object"
        raise LineError("invalid_request", f"{within}{name} is not {said}", param=within + name)
    return value
