"""The lab's name for `fluxplane.binaries`, while its modules still import that one from here."""

from __future__ import annotations

from fluxplane.binaries import EMBEDDED, Installation, Runner, at, embedded, find, reachable, runner, system

__all__ = ["EMBEDDED", "Installation", "Runner", "at", "embedded", "find", "reachable", "runner", "system"]
