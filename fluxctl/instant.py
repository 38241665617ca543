"""
Instants as the platform's CLI prints them: `<unixMs> · <ISO> · <UTC human> · <relative>`.

Apart from `screen`, because `datetime` costs a start, and only few commands print one.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from fluxctl import screen


def shown(text: str, *, remaining_s: float | None = None) -> str:
    """
    The instant *text* (RFC 3339) in all four forms, or *text* itself when it is none.

    *remaining_s*, where the daemon measured it, is better than this machine's wall clock.
    """
    found = parsed(text)
    if found is None:
        return text
    iso = found.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    left = found.timestamp() - time.time() if remaining_s is None else remaining_s
    human = found.strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{int(found.timestamp() * 1000)} · {iso} · {human} · {relative(left)}"


def parsed(text: str) -> datetime | None:
    """*text* as a moment in UTC, None if it is none; without an offset it is taken as UTC."""
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def text(seconds: float) -> str:
    """The instant *seconds* after the epoch, as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def relative(seconds: float) -> str:
    return f"in {screen.duration(seconds)}" if seconds >= 0 else f"{screen.duration(-seconds)} ago"
