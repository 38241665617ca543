"""`flux dump`: see `commands.dump`, which has a command of the same word for `flux db`."""

from __future__ import annotations

from fluxctl.commands.dump import PLAIN as COMMANDS

__all__ = ["COMMANDS"]
