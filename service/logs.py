"""Logs: text for people, or one JSON object a line; each line says which call it belongs to."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

# What is known of the RPC that the current task handles: rpc, request_id, principal, trace_id, ...
_call: ContextVar[dict[str, Any] | None] = ContextVar("call", default=None)

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def begin_call(**facts: Any) -> dict[str, Any]:
    """Starts the facts of one RPC; they are on every line that its task logs."""
    call = {name: value for name, value in facts.items() if value not in (None, "")}
    _call.set(call)
    return call


def note(**facts: Any) -> None:
    """Adds facts to the call that is being handled, if there is one."""
    call = _call.get()
    if call is not None:
        call.update({name: value for name, value in facts.items() if value not in (None, "")})


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _call.get() or {}
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # One line whatever a client puts into its request id: JSON escapes line ends.
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        facts = (_call.get() or {}) | {name: value for name, value in vars(record).items() if name not in _STANDARD}
        text = super().format(record)
        if facts:
            shown = " ".join(
                f"{name}={json.dumps(value, ensure_ascii=False, default=str)}" for name, value in facts.items()
            )
            head, *rest = text.split("\n", 1)
            text = "\n".join([f"{head} [{shown}]", *rest])
        return text


def configure(level: str, form: str, stream: TextIO | None = None) -> None:
    """Sends the process's logs to `stream` (stderr) as `form`: text or json."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
