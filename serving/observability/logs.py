"""Log to standard error, as text or as one JSON object a line, with the id of the call that a line belongs to."""

import json
import logging
import random
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal, TypeAlias

REQUEST_ID = "x-request-id"
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["text", "json"]

# Characters that have no special meaning in a log line or a header.
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/=+-]{0,127}\Z")
# Attributes that log calls of this package add with `extra`.
_EXTRA = ("request_id", "method", "code", "seconds")


def request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the caller's own x-request-id if it is safe to log, else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID and isinstance(value, str) and _SANE_ID.match(value):
            return value
    # An id is no secret, and `secrets` would take longer than the rest of this function.
    return f"{random.getrandbits(64):016x}"


def configure(level: LogLevel, form: LogFormat) -> None:
    """Send this process's log to standard error.

    Args:
        level: lowest level of this project's own lines; those of other libraries start at warning.
        form: format of a line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("imagekin").setLevel(level.upper())


def announce(message: str) -> None:
    """Log a line whatever the level is: a server always announces that it is ready."""
    log = logging.getLogger("imagekin.serving")
    log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, message, (), None))


class TextFormatter(logging.Formatter):
    """Format a record as `TIME LEVEL message (key=value …)`, followed by the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text."""
        extra = " ".join(f"{name}={value}" for name, value in _extra(record).items())
        line = f"{_time(record)} {record.levelname} {record.getMessage()}" + (f" ({extra})" if extra else "")
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """Format a record as one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line of JSON."""
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: record.__dict__[name] for name in _EXTRA if name in record.__dict__}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
