"""
Asking a person for the passphrase of a key, as ssh does: on the terminal itself, whatever stdin and stdout are.

What was typed is shown nowhere and goes into the next request to the daemon alone.
"""

from __future__ import annotations

import getpass
import os

from fluxctl.problem import Problem, printable


def ask(path: str, *, again: str | None = None) -> str | None:
    """
    What was typed for the key in *path*, after the words *again*; None without a terminal or an answer.

    Raises:
        Problem: ssh_key_encrypted, it is no text.
    """
    if not _has_terminal():
        return None
    said = f"{printable(again)}\n" if again else ""
    try:
        return getpass.getpass(f"{said}Passphrase for {printable(path)}: ") or None
    except EOFError:
        return None
    except UnicodeDecodeError:  # its text holds what was typed: not to be chained
        raise Problem("ssh_key_encrypted", "What was typed is not UTF-8, as a passphrase here must be.") from None


def _has_terminal() -> bool:
    """Getpass would do without one, and read a script's stdin aloud."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
