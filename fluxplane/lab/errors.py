"""What keeps a lab from running: a fact and a way out, printed by `fluxplane lab` before it exits with 1."""

from __future__ import annotations

from fluxplane.binaries import Unusable


class LabFailed(Unusable):
    """A PostgreSQL that cannot be used is one way; see the base for the two texts."""
