"""
Which project a command means: flags, the name on the command line, else the nearest `flux.json` towards the root.

`--hash` decides; the name is a label that the control plane's own is checked against. An explicit `-p` wins over the
positional name (the platform's CLI has it the other way round, against its own help).
"""

from __future__ import annotations

import os

from fluxctl import quickjson
from fluxctl.problem import Problem, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PLACEHOLDER = "REPLACE_AFTER_FLUX_INIT"
_LARGEST_FILE = 1024 * 1024
_HEX = frozenset("0123456789abcdef")


class Project:
    """A project as the caller names it. `name` is a slug, or None when only the hash was given."""

    def __init__(self, name: str | None, project_hash: str) -> None:
        self.name = name
        self.hash = project_hash


def working_directory() -> str:
    """
    Where we are.

    Raises:
        Problem: the directory was removed under us.
    """
    try:
        return os.getcwd()  # noqa: PTH109 - pathlib costs a start
    except OSError as error:
        raise usage(f"The current directory cannot be read: {error.strerror}.") from error


def choose(positional: str | None, project_flag: str | None, hash_flag: str | None) -> Project:
    """
    The project meant.

    Raises:
        Problem: usage, project_missing or flux_json_invalid.
    """
    typed = project_flag if project_flag is not None else positional
    name = slugified(typed) if typed is not None else None
    if hash_flag is not None:
        return Project(name, checked_hash(hash_flag))
    declared = from_flux_json(working_directory())
    if declared is None:
        return _without_flux_json(name)
    return Project(name or declared.name, declared.hash)


def from_flux_json(directory: str) -> Project | None:
    """
    What the nearest flux.json says, None without one.

    Raises:
        Problem: flux_json_invalid.
    """
    place = nearest(directory)
    return None if place is None else _parsed(f"{place.rstrip('/')}/flux.json")


def nearest(directory: str) -> str | None:
    """The first directory from *directory* towards the root that has a flux.json."""
    while True:
        if os.path.isfile(f"{directory.rstrip('/')}/flux.json"):  # noqa: PTH113 - pathlib costs a start
            return directory
        parent = os.path.dirname(directory)  # noqa: PTH120
        if parent == directory:
            return None
        directory = parent


def slugified(name: str) -> str:
    """
    The slug of *name*: lower case, every run of anything else than letters and digits one `-`, none at the ends.

    Raises:
        Problem: nothing is left.
    """
    plain = "".join(char if char.isascii() and char.isalnum() else " " for char in name.lower())
    slug = "-".join(plain.split())
    if not slug:
        raise usage(f"{name!r} is not a project name.")
    return slug


def is_hash(text: str) -> bool:
    return len(text) == 7 and _HEX.issuperset(text)


def checked_hash(text: str) -> str:
    """
    *text* as a project hash.

    Raises:
        Problem: it is none.
    """
    found = text.strip().lower()
    if not is_hash(found):
        raise usage(f"--hash takes 7 hex digits, not {text!r}.")
    return found


def _without_flux_json(name: str | None) -> Project:
    # Somebody who has only the hash at hand gives it where the name goes; a slug may look like one, but then it has
    # its hash beside it.
    if name is not None and is_hash(name):
        return Project(None, name)
    if name is None:
        raise Problem("project_missing")
    raise Problem("project_missing", f"Which hash has {name}?", hint="Pass --hash (`flux list` shows it).")


def _parsed(path: str) -> Project:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs a start
            found = quickjson.loads(file.read(_LARGEST_FILE))
    except (OSError, ValueError) as error:
        raise Problem("flux_json_invalid", detail=f"{path}: {error}") from error
    return _checked(path, found)


def _checked(path: str, found: Any) -> Project:
    slug, project_hash = (found.get("slug"), found.get("hash")) if isinstance(found, dict) else (None, None)
    if project_hash == PLACEHOLDER:
        raise Problem(
            "flux_json_invalid", "flux.json is not initialised yet.", detail=path, hint="Run `flux init` first."
        )
    if not isinstance(slug, str) or not slug.strip() or not isinstance(project_hash, str):
        raise Problem("flux_json_invalid", detail=path)
    if not is_hash(project_hash.strip().lower()):
        raise Problem("flux_json_invalid", detail=f"{path}: `hash` is not 7 hex digits")
    return Project(slugified(slug), project_hash.strip().lower())
