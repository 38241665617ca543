"""Runs pg_dump and pg_restore to their end, however we end: with what they said, and a look now and then at how far."""

from __future__ import annotations

import re
import signal
import subprocess
import threading

from fluxctl.problem import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import IO

    from fluxctl.guard import Guard

_LOOK_EVERY_S = 0.2
_END_WITHIN_S = 5.0
_KEPT_LINES = 200
_SHOWN = 2000

_NO_ROOM = re.compile(r"No space left on device|File too large|Disk quota exceeded")
_TOO_OLD = re.compile(r"server version mismatch|unsupported version \([\d.]+\) in file header")
_CUT = re.compile(
    r"server closed the connection|terminating connection|could not receive data|SSL SYSCALL|[Cc]onnection refused"
    r"|could not send data|connection not open|unexpected EOF|Connection reset"
)
_HIDDEN = re.compile(r"row-level security policy for table \"([^\"]+)\"")
_DENIED = re.compile(r"permission denied for ([\w ]+?) \"?([^\s\":]+)")


def run(
    argv: Sequence[str],
    variables: Mapping[str, str],
    *,
    look: Callable[[], object],
    hear: Callable[[str], bool] = lambda _line: False,
    guard: Guard | None = None,
) -> tuple[int, str]:
    """
    The exit status, and the last lines of stderr that *hear* did not take for itself. *look* is called now and then.
    A *guard* ends the program after a `kill -9` of ours.

    Raises:
        Problem: program_missing, it cannot be started.
    """
    try:
        process = subprocess.Popen(
            argv,
            env={**variables, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=guard.group if guard else None,
        )
    except OSError as error:
        raise Problem("program_missing", f"{argv[0]}: {error.strerror}.") from error
    said: list[str] = []
    reader = threading.Thread(target=_listen, args=(process.stderr, said, hear), daemon=True)
    reader.start()
    try:
        return _watched(process, look), _end_of(reader, said)
    except BaseException:
        _stop(process)
        raise
    finally:
        reader.join(_END_WITHIN_S)
        if process.stderr is not None:
            process.stderr.close()


def _watched(process: subprocess.Popen[str], look: Callable[[], object]) -> int:
    while True:
        try:
            return process.wait(_LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            look()


def _end_of(reader: threading.Thread, said: list[str]) -> str:
    reader.join(_END_WITHIN_S)
    return "\n".join(said).strip()


def _listen(stream: IO[str] | None, said: list[str], hear: Callable[[str], bool]) -> None:
    for line in stream or ():
        if not hear(line.rstrip("\n")):
            said.append(line.rstrip("\n"))
            del said[:-_KEPT_LINES]


def _stop(process: subprocess.Popen[str]) -> None:
    """Asked, then made to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(_END_WITHIN_S)
            except subprocess.TimeoutExpired:
                continue


def failure(program: str, code: str, said: str, *, hidden: Sequence[str] = ()) -> Problem:
    """
    What the last words of *program* mean: no room, too old, cut off, not allowed; else the problem *code*.

    *hidden*: tables that a policy is known to hide rows of.
    """
    detail = said[-_SHOWN:] or f"{program} said nothing."
    if program == "pg_dump" and (blocked := _blocked(said, hidden)):
        return Problem("dump_blocked", blocked, detail=detail)
    if program == "pg_dump" and (match := _NO_ROOM.search(said)):
        return Problem("output_unusable", f"{match[0]}: nothing was left under the output's name.", detail=detail)
    if _TOO_OLD.search(said):
        return Problem("program_too_old", detail=detail)
    if _CUT.search(said):
        return Problem(
            code,
            f"{program} lost its connection to the database.",
            detail=detail,
            hint="The tunnel or its credential ended meanwhile (`fluxctl status`); run the command again.",
        )
    return Problem(code, detail=detail)


def _blocked(said: str, hidden: Sequence[str]) -> str | None:
    if match := _HIDDEN.search(said):
        tables = ", ".join(dict.fromkeys([*hidden, match[1]]))
        return f"Row-level security hides rows of these tables from the temporary role: {tables}."
    if match := _DENIED.search(said):
        return f"The temporary role may not read {match[1]} {match[2]}."
    return None
