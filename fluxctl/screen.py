"""
How things look: results to stdout, indented by two spaces, in sections; everything else to stderr.

Colour only on a terminal, never with `NO_COLOR` (no-color.org) or `TERM=dumb`. Text from elsewhere goes through
`problem.printable`, so that no project name repaints a terminal.
"""

from __future__ import annotations

import os
import sys

from fluxctl import quickjson
from fluxctl.problem import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, TextIO

INDENT = "  "


def line(text: str = "") -> None:
    """One line of the result."""
    print(f"{INDENT}{printable(text)}" if text else "", flush=True)


def section(title: str) -> None:
    """A title over a rule of its own width, a blank line before."""
    line()
    print(INDENT + bold(title))
    print(INDENT + dim("─" * len(title)))


def note(text: str) -> None:
    """Something worth saying that is not the result."""
    print(printable(text), file=sys.stderr, flush=True)


def warning(text: str) -> None:
    print(_painted("33", f"Warning: {printable(text)}", sys.stderr), file=sys.stderr, flush=True)


def json(value: Any) -> None:
    """The result for a program: two spaces of indent, as the platform's CLI prints it."""
    print(quickjson.dumps(value, indent=2), flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell."""
    shown = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[n]) for row in [head, *shown]) for n in range(len(head))]
    for number, row in enumerate([head, *shown]):
        text = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        print(INDENT + (dim(text) if number == 0 else text))


def bold(text: str) -> str:
    return _painted("1", text, sys.stdout)


def dim(text: str) -> str:
    return _painted("2", text, sys.stdout)


def yellow(text: str) -> str:
    return _painted("33", text, sys.stdout)


def duration(seconds: float) -> str:
    """`59 min`, `1 h 5 min`, `40 s`: two units at most, rounded down."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def size(count: int) -> str:
    """Bytes for people: `512 B`, `1.5 kB`, `2.0 MB`."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"


def _painted(code: str, text: str, stream: TextIO) -> str:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{code}m{text}\x1b[0m"
