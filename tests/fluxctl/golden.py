"""Texts that are contract, kept in files. `FLUX_GOLDEN=write` writes them anew, for a person to read in the diff."""

import os
from pathlib import Path

PLACE = Path(__file__).parent / "golden"


def golden(name: str, text: str) -> str:
    """What *text* should be."""
    path = PLACE / name
    if os.environ.get("FLUX_GOLDEN") == "write":
        path.write_text(text)
    return path.read_text()
