"""The files of an installation: filled from what this package ships, written whole, removed without a trace."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from fluxctl.problem import Problem

_PACKAGE = Path(__file__).resolve().parent.parent
_MOVE = "Install flux-db-access in a directory without quotes and backslashes in its name."


def shipped(name: str) -> str:
    """The text of `systemd/…` or `launchd/…`, out of the installed package or the source tree."""
    inside, beside = _PACKAGE / "units" / Path(name).name, _PACKAGE.parent / name
    return (inside if inside.is_file() else beside).read_text(encoding="utf-8")


def program() -> Path:
    """
    The `fluxd` that belongs to this `fluxctl`, by the path that an upgrade keeps: links are not followed.

    Raises:
        Problem: program_missing.
    """
    invoked = shutil.which(sys.argv[0])
    beside = [Path(one).absolute().parent / "fluxd" for one in (invoked, sys.executable) if one]
    for found in beside:
        if os.access(found, os.X_OK):
            return found
    raise Problem(
        "program_missing",
        "The fluxd beside this fluxctl is missing.",
        detail=", ".join(map(str, beside)),
        hint="Install flux-db-access again, with pipx or uv.",
    )


def unit(text: str, fluxd: Path) -> str:
    """*text* of a systemd service with *fluxd* as its program."""
    return re.sub(r"(?m)^ExecStart=.*$", lambda _: f"ExecStart={_systemd_quoted(fluxd)}", text)


def _systemd_quoted(path: Path) -> str:
    """
    systemd.service(5), Command lines: double quotes around spaces, and % is for its own specifiers.

    Raises:
        Problem: service_failed; systemd starts no program with a quote or a backslash in its path, however quoted.
    """
    if set(str(path)) & set("\"'\\") or not str(path).isprintable():
        raise Problem("service_failed", f"systemd cannot start a program with such a path: {path}", hint=_MOVE)
    return '"' + str(path).replace("%", "%%") + '"'


def agent(text: str, values: dict[str, Path]) -> str:
    """*text* of a launchd agent with each `@NAME@` replaced."""
    for name, value in values.items():
        text = text.replace(f"@{name}@", _escaped(str(value)))
    return text


def _escaped(text: str) -> str:
    """As XML's character data. (xml.sax.saxutils does the same, and brings urllib.request along.)"""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def write(path: Path, text: str) -> bool:
    """Make *path* hold *text*, by rename; False if it did already."""
    if path.is_file() and not path.is_symlink() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.chmod(0o644)
    draft.replace(path)
    return True


def remove(path: Path) -> bool:
    """Remove *path* and the directories above it, below home, that are empty then; False if it was not there."""
    was_there = path.is_symlink() or path.exists()
    path.unlink(missing_ok=True)
    home = Path.home()
    for above in path.parents:
        if above == home or home not in above.parents:
            break
        try:
            above.rmdir()
        except OSError:
            break
    return was_there
