"""What keeps a lab from running: a fact and a way out, printed by `fluxplane lab` before it exits with 1."""

from __future__ import annotations


class LabFailed(Exception):
    """`message` is the fact, `hint` the next step. Neither holds a secret."""

    def __init__(self, message: str, *, hint: str) -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message} {hint}")
