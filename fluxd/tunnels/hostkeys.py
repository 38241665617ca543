"""
Is this SSH host the one we know?

Strict, and without a question to anybody: a key is trusted when known_hosts has it, or when known_hosts says nothing at
all about this host and the control plane's plan pins it. The plan may add a key; it never overrides known_hosts.
Unknown, changed and revoked raise the same error in asyncssh, so the verdict is made here, from the entries that
matched and the key that was shown. Hashed names, ``@cert-authority`` and ``@revoked`` are asyncssh's own reading.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import asyncssh

from fluxd.core.errors import (
    FluxError,
    ShownKey,
    SSHConfigInvalid,
    SSHHostKeyChanged,
    SSHHostKeyRevoked,
    SSHHostKeyUnknown,
    TooManyOpenFiles,
)
from fluxd.core.target import DEFAULT_PORT

USER_FILES: Final = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
GLOBAL_FILES: Final = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")


class HostKeys:
    """
    What is known about hosts, for one dial, and what that dial met.

    *files* begin with the one that is the user's to add to; *alias* is ssh_config's HostKeyAlias, looked up as it is.

    Raises:
        SSHConfigInvalid, TooManyOpenFiles: one of *files* is there, and cannot be read.
    """

    def __init__(self, files: Sequence[str | Path], pinned: Sequence[str] = (), alias: str | None = None) -> None:
        self._known = _read(files)
        self._file = Path(files[0]).expanduser()
        self._alias = alias
        self._known_as = ""
        self._pinned = [key for line in pinned if (key := _public_key(line)) is not None]
        self._trusted: Sequence[asyncssh.SSHKey] = ()
        self._revoked: Sequence[asyncssh.SSHKey] = ()
        self._authorities: Sequence[asyncssh.SSHKey] = ()
        self.shown: asyncssh.SSHKey | None = None

    def match(self, host: str, addr: str, port: int | None) -> Sequence[Any]:
        """The entries for a host, in the seven kinds that asyncssh wants: its `known_hosts` callable."""
        found: list[Any] = list(self._known.match(host, addr, port))
        if port is not None:
            # asyncssh looks for the bare host when it knows no key for this port, and loses what it found revoked.
            named = (self._known.match(f"[{name}]:{port}", "", None) for name in (host, addr) if name)
            found[2] = [*found[2], *(key for one in named for key in one[2])]
        if not any(found[kind] for kind in (0, 1, 3, 5)):
            found[0] = self._pinned
        self._trusted, self._authorities, self._revoked = found[:3]
        self._known_as = host if port in (None, DEFAULT_PORT) or host == self._alias else f"[{host}]:{port}"
        return found

    def meet(self, key: asyncssh.SSHKey) -> bool:
        """Remember a key that no entry trusts. Never accept it."""
        self.shown = key
        return False

    def verdict(self, host: str, reason: str) -> FluxError:
        """Which problem it is that *host*'s key was not accepted; *reason* is asyncssh's word for it."""
        if self.shown is None and self._revoked:
            return SSHHostKeyRevoked(f"The key of {host} is marked @revoked in your known_hosts.", detail=reason)
        if self._trusted:
            return SSHHostKeyChanged(
                f"The key of {host} is not the one you know. Somebody may be listening in.",
                detail=f"Known: {_names(self._trusted)}. Shown now: {self._shown_name()}.",
                hint=f"Ask your operator whether it was changed. Only then forget the old one: `ssh-keygen -R {host}`.",
            )
        if self.shown is None:
            return SSHHostKeyUnknown(
                f"The certificate of {host} is not trusted.",
                detail=reason,
                hint="Ask your operator for the @cert-authority line that belongs in your known_hosts.",
            )
        unknown = SSHHostKeyUnknown(
            f"{host} is not known yet. It shows the key {_name(self.shown)}.",
            detail="Its certificate authority is known, but it shows no certificate." if self._authorities else None,
        )
        unknown.shown = ShownKey(
            host=host,
            algorithm=self.shown.get_algorithm(),
            fingerprint=fingerprint(self.shown),
            line=f"{self._known_as} {' '.join(self.shown.export_public_key().decode().split()[:2])}",
            file=str(self._file),
        )
        return unknown

    def no_common_key(self, host: str, reason: str) -> FluxError | None:
        """The problem when no key type was agreed on: a change, if keys of this host are known."""
        return self.verdict(host, reason) if self._trusted else None

    def _shown_name(self) -> str:
        return _name(self.shown) if self.shown is not None else "a key of another type"


def fingerprint(key: asyncssh.SSHKey) -> str:
    """``SHA256:…``, as ssh-keygen prints it."""
    return key.get_fingerprint()


def _name(key: asyncssh.SSHKey) -> str:
    return f"{key.get_algorithm()} {fingerprint(key)}"


def _names(keys: Sequence[asyncssh.SSHKey]) -> str:
    return ", ".join(dict.fromkeys(map(_name, keys)))


def _read(files: Iterable[str | Path]) -> asyncssh.SSHKnownHosts:
    known = asyncssh.import_known_hosts("")
    for path in files:
        for line in _lines(path):
            try:
                known.load(line)
            except ValueError:
                continue  # one bad line is no reason to forget the others; ssh does the same
    return known


def _lines(path: str | Path) -> list[str]:
    """A file that is there and cannot be read might speak against a key that the plan pins: nothing is trusted then."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise TooManyOpenFiles from error
        hint = "Make it a file that you may read, or name another (UserKnownHostsFile, FLUX_DB_TUNNEL_KNOWN_HOSTS)."
        raise SSHConfigInvalid(f"{path} cannot be read.", detail=error.strerror, hint=hint) from error


def _public_key(line: str) -> asyncssh.SSHKey | None:
    try:
        return asyncssh.import_public_key(line)
    except asyncssh.KeyImportError:
        return None
