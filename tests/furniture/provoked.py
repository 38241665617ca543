"""
A problem that was provoked for real, seen as whoever asked sees it: its message, its hint, its status or exit code.

Every code of `fluxd.core.errors` has a test with such a call: tests/architecture/test_every_problem.py reads them.
"""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fluxd.core.errors import FluxError, every_error

TESTS = Path(__file__).parents[1]
KINDS = {kind.code: kind for kind in every_error()}


class Answer(Protocol):
    """What `tests.fluxd.asking` got from the socket."""

    @property
    def status(self) -> int: ...
    @property
    def body(self) -> Any: ...


@dataclass(frozen=True)
class Told:
    """What reached the one who asked. `code` is None where people are shown none."""

    code: str | None
    message: str
    detail: str
    hint: str


def provoked(
    code: str, seen: object, *, says: str | None = None, hint: str | None = None, exit_code: int | None = None
) -> str:
    """
    *seen* tells the problem *code*: with its summary (or *says* somewhere in another message) and its hint (or another
    that begins with *hint*).

    It is a finished command (with another program's *exit_code*, where that is passed on), a problem on the socket (an
    answer, its body, an event's), a notice, or what our own code has raised. Answers all its words.
    """
    kind = KINDS[code]
    told = _told(kind, seen, exit_code or kind.exit_code)
    assert told.code in {None, code}, told
    assert says in told.message if says else told.message == kind.summary, told
    assert told.hint.startswith(hint or str(kind.hint)), told
    return f"{told.message}\n{told.detail}\n{told.hint}"


def _told(kind: type[FluxError], seen: Any, exit_code: int) -> Told:
    if isinstance(seen, str):
        hint = str(kind.hint)
        return Told(None, kind.summary if kind.summary in seen else seen, seen, hint if hint in seen else "")
    if isinstance(seen, subprocess.CompletedProcess):
        return _on_stderr(seen, exit_code)
    if isinstance(seen, BaseException):
        assert _raised_by_us(seen), f"{seen!r} was made by a test"
    elif not isinstance(seen, Mapping) and hasattr(seen, "body"):
        assert (seen.status, seen.body["status"]) == (kind.status, kind.status)
        seen = seen.body
    if isinstance(seen, Mapping):
        return Told(seen["code"], seen["message"], seen.get("detail") or "", seen["hint"])
    return Told(seen.code, seen.message, seen.detail or "", seen.hint)


def _on_stderr(done: subprocess.CompletedProcess[str], exit_code: int) -> Told:
    """What `flux` or `fluxd` printed; nothing of it went to stdout."""
    assert (done.returncode, done.stdout or "") == (exit_code, ""), done
    assert "Traceback" not in done.stderr, done.stderr
    lines = _as_flux_says_it(done.stderr).splitlines()
    message = [line for line in lines if line.startswith("Error: ")]
    assert len(message) == 1, done.stderr
    words = {
        name: [line.removeprefix(name) for line in lines if line.startswith(name)] for name in ("DETAIL: ", "HINT: ")
    }
    return Told(None, message[0].partition(": ")[2], "\n".join(words["DETAIL: "]), "\n".join(words["HINT: "]))


def _as_flux_says_it(text: str) -> str:
    """`fluxd` itself puts detail and hint on lines of their own, without a word before them."""
    if not text.startswith("fluxd: "):
        return text
    message, *details, hint = text.removeprefix("fluxd: ").splitlines()
    return "\n".join([f"Error: {message}", *(f"DETAIL: {one.strip()}" for one in details), f"HINT: {hint.strip()}"])


def _raised_by_us(error: BaseException) -> bool:
    """It comes from the product's code, not from a test's `raise` or constructor."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and TESTS not in Path(place.tb_frame.f_code.co_filename).parents


def in_answer(raw: bytes) -> Mapping[str, Any]:
    """The problem in an HTTP answer that was read byte for byte."""
    found = json.loads(raw.partition(b"\r\n\r\n")[2])
    assert isinstance(found, dict)
    return found
