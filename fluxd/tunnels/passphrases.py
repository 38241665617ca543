"""
The passphrases of encrypted keys: in this process' memory, by path, until it ends. Nowhere else.

A caller sends them with its request (``ssh.passphrases``); each is tried on its file at once, so that only right ones
are kept. Reconnects and restored tunnels find them here. `fluxd.journal` knows paths alone.

`KeyRing` is what one dial makes of the files it may use: open ones, those that are opened when the host wants them, and
which one a passphrase was missing for. It is the host that says so: a locked key is offered by its public half, as ssh
offers it, and only one that the host would take is asked for.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import asyncssh

from fluxd import wire
from fluxd.core.errors import SSHKeyEncrypted

NEEDS_FIDO2: Final = (
    "It is a security key's: your ssh-agent can use it; without one fluxd has to be installed with the extra fido2."
)
WRONG: Final = "That is not the passphrase of the key."


class Passphrases:
    """What opens which file. A file that was encrypted anew is asked for again."""

    def __init__(self) -> None:
        self._by_path: dict[str, wire.Secret] = {}

    async def learn(self, ssh: wire.SSH) -> None:
        """
        Keep the passphrases that a caller sent.

        Raises:
            SSHKeyEncrypted: one does not open its file.
        """
        for one in ssh.passphrases:
            await asyncio.to_thread(self._learn, one.file, one.passphrase)

    def _learn(self, path: str, passphrase: wire.Secret) -> None:
        if not _is_encrypted(path):
            return  # nothing to open; whether it is a key at all dialling says
        try:
            asyncssh.read_private_key(path, passphrase.reveal())
        except (asyncssh.KeyEncryptionError, asyncssh.KeyImportError) as error:
            raise SSHKeyEncrypted(WRONG, detail=path) from error
        self._by_path[path] = passphrase

    def of(self, path: str) -> str | None:
        """What is known to open the file; it may have been encrypted anew."""
        passphrase = self._by_path.get(path)
        return None if passphrase is None else passphrase.reveal()

    def lacks(self, path: str) -> bool:
        """Whether the file is encrypted and nobody has said what opens it. Reads the file: for a thread."""
        return _is_encrypted(path) and not self._open(path)

    def _open(self, path: str) -> bool:
        passphrase = self.of(path)
        if passphrase is None:
            return False
        try:
            asyncssh.read_private_key(path, passphrase)
        except (asyncssh.KeyEncryptionError, asyncssh.KeyImportError, OSError):
            self._by_path.pop(path, None)
            return False
        return True


class KeyRing:
    """The keys of one dial, in the order in which they are offered. Reads files: for a thread."""

    def __init__(self, passphrases: Passphrases, paths: Iterable[str], *, named: bool) -> None:
        """*named*: the files must be usable keys; else those that are not are left out, as ssh does."""
        self.pairs: list[asyncssh.SSHKeyPair] = []
        self._passphrases = passphrases
        self._encrypted: list[str] = []
        # Those that the host would have taken; and those without a public half to offer.
        self._wanted: list[str] = []
        self._mute: list[str] = []
        for path in paths:
            try:
                self.pairs += _usable(self._loaded(path))
            except (OSError, ValueError) as error:
                if named or getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
                    raise

    def _loaded(self, path: str) -> Sequence[asyncssh.SSHKeyPair]:
        if _is_public(path):
            return ()  # it says which of the agent's keys is meant
        if not _is_encrypted(path):
            return asyncssh.load_keypairs([path])
        self._encrypted.append(path)
        if public_halves(path):
            # asyncssh asks back only when it signs, and takes a ValueError for a key that is not to be had.
            return asyncssh.load_keypairs([path], self._opened)  # type: ignore[arg-type]  # it documents callables
        self._mute.append(path)
        return () if self._passphrases.lacks(path) else asyncssh.load_keypairs([path], self._passphrases.of(path))

    def _opened(self, path: str) -> str:
        """For asyncssh, once the host would take the key: what opens it."""
        self._wanted.append(path)
        passphrase = self._passphrases.of(path)
        if passphrase is None:
            raise asyncssh.KeyImportError("nobody has said what opens it")
        return passphrase

    def lacking(self) -> str | None:
        """After a refusal: the file that a passphrase was missing for. Reads files: for a thread."""
        return next((path for path in (*self._wanted, *self._mute) if self._passphrases.lacks(path)), None)

    def locked(self) -> bool:
        """Whether any of them would have to be asked for. Reads files: for a thread."""
        return any(self._passphrases.lacks(path) for path in self._encrypted)


def public_halves(path: str) -> list[bytes]:
    """Of the key in *path*, as an agent names it: what the file itself says (OpenSSH's do), and those beside it."""
    found: list[bytes] = []
    for read in (asyncssh.read_public_key, asyncssh.read_certificate):
        for file in (path, f"{path}.pub", f"{path}-cert.pub"):
            with suppress(OSError, ValueError):
                found.append(read(file).public_data)
    return found


def _is_public(path: str) -> bool:
    return b"PRIVATE KEY" not in Path(path).read_bytes() and bool(public_halves(path))


def _usable(pairs: Sequence[asyncssh.SSHKeyPair]) -> Sequence[asyncssh.SSHKeyPair]:
    if any(pair.algorithm.startswith(b"sk-") for pair in pairs) and find_spec("fido2") is None:
        raise asyncssh.KeyImportError(NEEDS_FIDO2)  # asyncssh would find out while it signs, and hang up
    return pairs


def _is_encrypted(path: str) -> bool:
    try:
        asyncssh.read_private_key(path)
    except asyncssh.KeyImportError as error:
        return "Passphrase must be specified" in str(error)  # its other words are of files that are no keys
    except (asyncssh.KeyEncryptionError, OSError):
        return False
    return False
