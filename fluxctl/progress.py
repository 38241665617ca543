"""How far a long transfer is: one line on a terminal's stderr, rewritten; nothing where nobody looks."""

from __future__ import annotations

import sys
import time

from fluxctl import screen
from fluxctl.problem import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_EVERY_S = 0.2
_WORTH_A_WORD_S = 1.0


class Meter:
    """`show` as often as you like; leaving the block clears the line. `took_s` is the time since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._last = 0.0
        self._shown = False
        self._visible = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    @property
    def took_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def due(self) -> bool:
        """Whether `show` would show something now."""
        return self._visible and time.monotonic() - self._last >= _EVERY_S

    def show(self, words: str) -> None:
        if self.due:
            self._last, self._shown = time.monotonic(), True
            sys.stderr.write(f"\r\x1b[K{screen.INDENT}{printable(words)}")
            sys.stderr.flush()

    def show_time(self, words: str) -> None:
        """How long it takes already, once that is worth a word."""
        if self.took_s >= _WORTH_A_WORD_S:
            self.show(f"{words} … {self.took_s:.0f} s")

    def reading(self, done: int) -> None:
        """How much of what was written is read back, for its checksum."""
        self.show(f"Checksum: {screen.size(done)} read back")

    def bytes(self, done: int, total: int | None = None) -> None:
        """Bytes so far, the rate, and of how many."""
        of = f" of {screen.size(total)}" if total else ""
        self.show(f"{screen.size(done)}{of}, {rate(done, self.took_s)}")


def rate(done: int, took_s: float) -> str:
    return f"{screen.size(int(done / max(took_s, 0.001)))}/s"
