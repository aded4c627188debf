"""Log lines with fields: JSON for machines or text for people, each with the request id of the call being handled."""

import json
import logging
import sys
from datetime import UTC, datetime

from services.runtime.calls import current_call
from services.runtime.config import RuntimeConfig

_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def configure_logging(config: RuntimeConfig) -> None:
    """Send this process's log to stderr; called once by the process, never by libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if config.log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.log_level)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What was passed as `extra`, plus the ids of the call being handled."""
    fields = {key: value for key, value in record.__dict__.items() if key not in _PLAIN}
    call = current_call()
    if call is not None:
        fields.setdefault("request_id", call.request_id)
        fields.setdefault("trace_id", call.trace.trace_id)
    return fields


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, message, fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, with the stack trace after it."""
        time = datetime.fromtimestamp(record.created, tz=UTC).strftime("%H:%M:%S.%f")[:-3]
        fields = " ".join(f"{key}={value}" for key, value in fields_of(record).items() if value != "")
        line = f"{time} {record.levelname:<7} {record.name} {record.getMessage()}"
        line = f"{line}  {fields}" if fields else line
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
