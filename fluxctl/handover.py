"""A word that is not ours goes to the next `flux` on PATH: the platform's own CLI keeps working beside this one."""

from __future__ import annotations

import os
import sys

from fluxctl.problem import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import NoReturn

# Set for the program we hand over to: should it be a shim that leads back here, it ends instead of turning in circles.
MARK = "FLUXCTL_HANDED_OVER"
_LONGEST_SCRIPT = 8192


def to_next_flux(words: Sequence[str], *, named: int = 1) -> NoReturn:
    """
    Become the next `flux`; the first *named* words are the command that this one lacks.

    Raises:
        Problem: next_flux_missing.
    """
    found = None if os.environ.get(MARK) else next(_others(), None)
    if found is None:
        command = " ".join(words[:named])
        raise Problem("next_flux_missing", f"`flux {command}` is not a command of this flux, and no other is on PATH.")
    os.environ[MARK] = "1"
    sys.stdout.flush()
    try:
        os.execv(found, [found, *words])  # noqa: S606 - the user's own program, by its full path
    except OSError as error:
        raise Problem("next_flux_missing", detail=f"{found}: {error.strerror}") from error


def _others() -> Iterator[str]:
    for place in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = f"{place or '.'}/flux"
        if os.path.isfile(path) and os.access(path, os.X_OK) and not _is_ours(path):  # noqa: PTH113 - pathlib costs a start
            yield path


def _is_ours(path: str) -> bool:
    """A start script of this package, whichever installation's."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs a start
            return b"fluxctl" in file.read(_LONGEST_SCRIPT)
    except OSError:
        return True  # unreadable: not ours to run either
