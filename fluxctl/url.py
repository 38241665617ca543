"""
A Postgres connection string taken apart, as the platform's contract reads it (§6).

User and password are percent-decoded, the database is the path as it stands, the port is 5432 unless named.
"""

from __future__ import annotations

from fluxctl.problem import Problem

FIELDS = ("user", "password", "database", "host", "port", "url")


def parsed(url: str) -> dict[str, str]:
    """
    The parts of *url* by `FIELDS`.

    Raises:
        Problem: plane_answer_invalid; its text holds nothing of *url*.
    """
    from urllib.parse import unquote, urlsplit  # noqa: PLC0415 - it costs a start; most commands take none apart

    try:
        parts = urlsplit(url)
        port = parts.port or 5432
    except ValueError:
        raise Problem("plane_answer_invalid", "The control plane's connection string is not a URL.") from None
    if parts.scheme not in {"postgres", "postgresql"} or not parts.hostname:
        raise Problem("plane_answer_invalid", "The control plane's connection string is not a Postgres URL.")
    return {
        "user": unquote(parts.username or "postgres"),
        "password": unquote(parts.password or ""),
        "database": parts.path.lstrip("/") or "postgres",
        "host": parts.hostname,
        "port": str(port),
        "url": url,
    }
