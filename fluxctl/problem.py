"""
What went wrong, as the client tells it: `Error:` with DETAIL and HINT lines, and an exit code.

Either the daemon's own problem (its JSON says everything) or one that the client found out by itself, whose words come
from the generated table in `fluxctl.problems`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_LONGEST_TEXT = 4000


class Problem(Exception):
    """
    A fact a person can be told, and the way out of it.

    `message`, `hint` and `exit_code` default to the table's for *code*. None of the texts holds a secret, and none can
    repaint a terminal: what is not printable is shown as `?`. `hinted`: the hint is not the table's.
    """

    def __init__(
        self,
        code: str,
        message: str | None = None,
        *,
        detail: str | None = None,
        hint: str | None = None,
        exit_code: int | None = None,
    ) -> None:
        from fluxctl.problems import PROBLEMS  # noqa: PLC0415 - read only when something fails

        summary, advice, exits = PROBLEMS.get(code, PROBLEMS["internal_error"])
        self.code = code
        self.message = printable(message or summary)
        self.detail = printable(detail) if detail else None
        self.hint = printable(hint or advice or "") or None
        self.hinted = hint is not None
        self.exit_code = exits if exit_code is None else exit_code
        super().__init__(self.message)

    def lines(self) -> list[str]:
        """What goes to stderr."""
        found = [f"Error: {self.message}"]
        found += [f"DETAIL: {line}" for line in (self.detail or "").splitlines()]
        found += [f"HINT: {line}" for line in (self.hint or "").splitlines()]
        return found


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP (`number`): like Ctrl+C, a way to end that is no error."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def interrupted(stop: KeyboardInterrupt, message: str | None = None) -> Problem:
    """Of Ctrl+C or `Stopped`, with what became of the work; the exit code is as a shell says it."""
    number = stop.number if isinstance(stop, Stopped) else 2
    return Problem("interrupted", message, exit_code=128 + number)


def from_answer(status: int, body: object) -> Problem:
    """The problem of an `application/problem+json` answer, whatever *body* really is."""
    if not isinstance(body, dict) or not isinstance(body.get("code"), str):
        return Problem("internal_error", f"fluxd answered {status} without saying why.")
    return from_body(body)


def from_body(body: Mapping[str, Any]) -> Problem:
    """As `from_answer`, of a body known to be a problem (an event's or a tunnel's)."""
    wait = body.get("retry_after_s")
    detail = _text(body.get("detail"))
    if isinstance(wait, (int, float)) and not isinstance(wait, bool):
        pause = f"It asks for {wait:.0f} s."
        detail = f"{detail}\n{pause}" if detail else pause
    return Problem(
        str(body["code"]),
        _text(body.get("message")),
        detail=detail,
        hint=_text(body.get("hint")),
        exit_code=_exit_code(body.get("exit_code")),
    )


def usage(message: str, *, hint: str | None = None) -> Problem:
    """The command line is wrong: exit 2, and nothing was asked of anybody."""
    return Problem("usage", message, hint=hint)


def printable(text: str) -> str:
    """*text* without what could repaint a terminal or hide words, its line breaks kept, its length bounded."""
    if len(text) > _LONGEST_TEXT:
        text = text[:_LONGEST_TEXT] + "…"
    if text.isprintable():
        return text
    return "".join(char if char == "\n" or char.isprintable() else "?" for char in text)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _exit_code(value: object) -> int | None:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 256
    return value if good else None  # type: ignore[return-value]
