"""Structured logs on standard error: one JSON object per line, with facts and no texts.

    setup()
    logger.info("served", extra={"facts": {"status": 200}})

The facts never contain a prompt, answer, key, query string or error message.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

logger = logging.getLogger("dpad.serving")


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Format `time`, `level`, `event` and the facts."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        facts = getattr(record, "facts", {})
        return json.dumps({"time": time, "level": record.levelname.lower(), "event": record.getMessage(), **facts})


def setup() -> None:
    """Send the server's own records, and uvicorn's warnings, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.handlers, uvicorn.propagate = [handler], False
    uvicorn.setLevel(logging.WARNING)


class Elsewhere(Exception):
    """The cause of an error that was raised in another process; `facts` is what `where` returned there."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__("in another process")
        self.facts = facts


def where(error: BaseException) -> dict[str, Any]:
    """What failed and where, with the first cause; without messages, which may hold a user's text."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, Elsewhere):
        return cause.facts
    frames = traceback.extract_tb(cause.__traceback__)[-6:]
    return {
        "error": type(error).__name__,
        "cause": type(cause).__name__,
        "trace": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
