"""The lab's SSH keys: made once, kept in files of its directory, private halves 0600."""

from __future__ import annotations

import os
from pathlib import Path

import asyncssh


def private_key(path: Path) -> asyncssh.SSHKey:
    """The Ed25519 key in *path*, made on first use; its public half lies beside it as `.pub`."""
    if not path.exists():
        _make(path)
    return asyncssh.read_private_key(path)


def public_line(key: asyncssh.SSHKey) -> str:
    """``ssh-ed25519 AAAA…``, without a comment."""
    return " ".join(key.export_public_key().decode().split()[:2])


def known_hosts_line(host: str, port: int, key: asyncssh.SSHKey) -> str:
    return f"[{host}]:{port} {public_line(key)}\n"


def _make(path: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519", comment="flux lab")
    path.with_name(path.name + ".pub").write_bytes(key.export_public_key())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.export_private_key())
