"""
The passphrases of encrypted identity files: in this process' memory, by path, until it ends. Nowhere else.

A caller sends one with its request (``ssh.passphrase``); it is tried on the file at once, so that only right ones are
kept. Reconnects and restored tunnels find it here. `fluxd.journal` knows the path alone.
"""

from __future__ import annotations

import asyncio
from typing import Final

import asyncssh

from fluxd import wire
from fluxd.core.errors import SSHKeyEncrypted

WRONG: Final = "That is not the passphrase of the identity file."


class Passphrases:
    """What opens which file. A file that was encrypted anew is asked for again."""

    def __init__(self) -> None:
        self._by_path: dict[str, wire.Secret] = {}

    async def learn(self, ssh: wire.SSH) -> None:
        """
        Keep the passphrase that a caller sent, if it sent one.

        Raises:
            SSHKeyEncrypted: it does not open the file.
        """
        if ssh.identity_file is not None and ssh.passphrase:
            await asyncio.to_thread(self._learn, ssh.identity_file, ssh.passphrase)

    def _learn(self, path: str, passphrase: wire.Secret) -> None:
        if not _is_encrypted(path):
            return  # nothing to open; whether it is a key at all dialling says
        try:
            asyncssh.read_private_key(path, passphrase.reveal())
        except (asyncssh.KeyEncryptionError, asyncssh.KeyImportError) as error:
            raise SSHKeyEncrypted(WRONG, detail=f"{path}: {error}") from error
        self._by_path[path] = passphrase

    def of(self, path: str) -> str | None:
        """What opens the file as it is now, for asyncssh; None without it. Reads the file: for a thread."""
        passphrase = self._by_path.get(path)
        if passphrase is None:
            return None
        try:
            asyncssh.read_private_key(path, passphrase.reveal())
        except (asyncssh.KeyEncryptionError, asyncssh.KeyImportError, OSError):
            self._by_path.pop(path, None)
            return None
        return passphrase.reveal()

    def lacks(self, path: str) -> bool:
        """Whether the file is encrypted and nobody has said what opens it. Reads the file: for a thread."""
        return _is_encrypted(path) and self.of(path) is None


def _is_encrypted(path: str) -> bool:
    try:
        asyncssh.read_private_key(path)
    except asyncssh.KeyImportError as error:
        return "Passphrase must be specified" in str(error)  # its other words are of files that are no keys
    except (asyncssh.KeyEncryptionError, OSError):
        return False
    return False
