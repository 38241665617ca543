"""
The daemon's log: lines for people, or one JSON object a line; secrets cut out of both.

Nothing ought to log a secret, since they travel as `Secret`; this is the net below, for texts that come from elsewhere:
tokens by their shape, what follows `Bearer`, passwords inside URLs, SCRAM verifiers.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Final, Literal

log = logging.getLogger(__name__)

FILE_NAME: Final = "fluxd.log"
LARGEST_FILE: Final = 2 * 1024 * 1024
OLDER_FILES: Final = 3

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


def configure(
    level: Level,
    kind: Literal["text", "json"],
    stream: IO[str] | None = None,
    *,
    journald: bool,
    directory: Path | None = None,
) -> None:
    """
    Send everything from *level* on to *stream* (stderr), and what libraries say from warnings on.

    With *directory* also into `fluxd.log` there, rotated by ourselves. Where that cannot be written, stderr is told.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(stream or sys.stderr)]
    handlers[0].setFormatter(JsonLines() if kind == "json" else Lines(journald=journald))
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(logging.WARNING)
    set_level(level)
    if directory is not None:
        _add_file(directory, kind)


def _add_file(directory: Path, kind: Literal["text", "json"]) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = _PrivateFile(directory / FILE_NAME, maxBytes=LARGEST_FILE, backupCount=OLDER_FILES, encoding="utf-8")
    except OSError as error:
        log.warning("no log is kept in %s: %s", directory, error.strerror)
        return
    file.setFormatter(JsonLines() if kind == "json" else Lines(journald=False))
    logging.getLogger().addHandler(file)


class _PrivateFile(RotatingFileHandler):
    """Nobody else reads it, whatever the umask; a link in its place is not followed."""

    def _open(self) -> IO[str]:  # type: ignore[override]
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(self.baseFilename, flags, 0o600), "a", encoding=self.encoding)


def is_journal(stream: IO[str], environ: Mapping[str, str] = os.environ) -> bool:
    """Whether *stream* goes to systemd's journal; JOURNAL_STREAM alone is inherited by whatever a service starts."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def set_level(level: Level) -> None:
    """From which level on our own modules are heard."""
    logging.getLogger("fluxd").setLevel(level.upper())
