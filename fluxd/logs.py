"""
The daemon's log: lines for people, or one JSON object a line; secrets cut out of both.

Nothing ought to log a secret, since they travel as `Secret`; this is the net below, for texts that come from elsewhere:
tokens by their shape, what follows `Bearer`, passwords inside URLs, SCRAM verifiers.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from typing import IO, Final, Literal

Level = Literal["debug", "info", "warning", "error"]

_SECRETS: Final = (
    (re.compile(r"flx_(?:live|mcp)_[0-9A-Za-z_]+"), "flx_…"),
    (re.compile(r"(?i)\b(bearer)\s+[^\s\"']+"), r"\1 …"),
    (re.compile(r"(?i)(postgres(?:ql)?://[^\s:/@]*):[^\s@]*@"), r"\1:…@"),
    (
        re.compile(r"(?i)\b(password|passwd|pgpassword|token|secret)(\"?'?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;}]+)"),
        r"\1\2…",
    ),
    (re.compile(r"SCRAM-SHA-256\$[^\s\"']+"), "SCRAM-SHA-256$…"),
)


def redacted(text: str) -> str:
    """*text* without what looks like a secret."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class Lines(logging.Formatter):
    """Lines for people. Under journald, which stamps each line, without a time and with its severity prefix."""

    def __init__(self, *, journald: bool) -> None:
        super().__init__("%(name)s: %(message)s" if journald else "%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._journald = journald

    def format(self, record: logging.LogRecord) -> str:
        text = redacted(super().format(record))
        # sd-daemon(3): <3> error, <4> warning, <6> info, <7> debug, at the start of each line.
        prefix = f"<{_severity(record.levelno)}>" if self._journald else ""
        return "\n".join(prefix + line for line in text.splitlines())


def _severity(level: int) -> int:
    return 7 if level < logging.INFO else 6 if level < logging.WARNING else 4 if level < logging.ERROR else 3


class JsonLines(logging.Formatter):
    """One JSON object a line: at, level, logger, message, and the trace where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["trace"] = redacted("".join(traceback.format_exception(*record.exc_info)))
        return json.dumps(line, ensure_ascii=False)


def configure(level: Level, kind: Literal["text", "json"], stream: IO[str] | None = None, *, journald: bool) -> None:
    """Send everything from *level* on to *stream* (stderr), and what libraries say from warnings on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if kind == "json" else Lines(journald=journald))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    set_level(level)


def set_level(level: Level) -> None:
    """From which level on our own modules are heard."""
    logging.getLogger("fluxd").setLevel(level.upper())
