"""
What only the plane's key can do: seal secrets at rest, derive a grant's password, make its SCRAM verifier.

No password of a temporary role is stored anywhere. It is HMAC(key, grant id, nonce): asked for twice, the same grant
yields the same password, and a stolen catalogue yields none. The key is 32 bytes, base64, from FLUXPLANE_KEY or a 0600
file; losing it loses the sealed passwords and signing secrets, nothing in any project's database.

There may be several keys, one a line: the first seals and derives, the others open what they once sealed. One with
`next:` before it is the next: every replica knows it before the first one uses it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fluxplane.settings import OperatorError, Settings
from fluxplane.wire import Secret

KEY_BYTES: Final = 32
ID_BYTES: Final = 4
# No character of base64: a key may begin with any of those.
NEXT: Final = "next:"
_NONCE_BYTES: Final = 12
# PostgreSQL's own default (scram_iterations): the passwords have 192 random bits, more rounds would protect nothing.
SCRAM_ITERATIONS: Final = 4096


class _Key:
    """Keys derived from one key, one per purpose."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise OperatorError(f"The plane's key must be {KEY_BYTES} bytes, base64-encoded.")
        self.id = _derive(key, b"key id")[:ID_BYTES]
        self.seal = AESGCM(_derive(key, b"seal"))
        self.password = _derive(key, b"grant password")


class Keychain:
    """The plane's keys; the first is the one in use."""

    def __init__(self, first: bytes, *others: bytes) -> None:
        self._first = _Key(first)
        self._keys = {key.id: key for key in (self._first, *map(_Key, others))}

    def __repr__(self) -> str:
        return "Keychain(…)"

    def seal(self, secret: Secret, *, purpose: str) -> bytes:
        """Encrypted and bound to its *purpose* (table, column and row), so that it cannot be moved elsewhere."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return self._first.id + nonce + self._first.seal.encrypt(nonce, secret.reveal().encode(), purpose.encode())

    def unseal(self, sealed: bytes, *, purpose: str) -> Secret:
        """
        Raises:
            OperatorError: sealed with another key, for another purpose, or damaged.
        """
        key, text = self._of(sealed), sealed[ID_BYTES:]
        try:
            return Secret(key.seal.decrypt(text[:_NONCE_BYTES], text[_NONCE_BYTES:], purpose.encode()).decode())
        except InvalidTag:
            raise OperatorError("A stored secret is damaged or was moved.") from None

    def is_current(self, made: bytes) -> bool:
        """Whether *made*, sealed or a nonce, is of the key in use."""
        return id_of(made) == self._first.id

    def nonce(self) -> bytes:
        """A new one for a grant; it says which key its password is derived from."""
        return self._first.id + secrets.token_bytes(_NONCE_BYTES)

    def password(self, grant_id: str, nonce: bytes) -> Secret:
        """
        32 base64url characters: 192 bits, the same for the same grant, never stored.

        Raises:
            OperatorError: its key is there no more.
        """
        mac = hmac.digest(self._of(nonce).password, b"password\0" + grant_id.encode() + b"\0" + nonce, "sha256")
        return Secret(base64.urlsafe_b64encode(mac[:24]).decode())

    def verifier(self, grant_id: str, nonce: bytes) -> str:
        """What Postgres stores for that password; the same each time, so that minting twice is minting once."""
        salt = hmac.digest(self._of(nonce).password, b"salt\0" + grant_id.encode() + b"\0" + nonce, "sha256")[:16]
        return scram_verifier(self.password(grant_id, nonce), salt)

    def _of(self, made: bytes) -> _Key:
        key = self._keys.get(id_of(made))
        if key is None:
            raise OperatorError("A stored secret was sealed with another key than the plane has now (FLUXPLANE_KEY).")
        return key


def scram_verifier(password: Secret, salt: bytes, iterations: int = SCRAM_ITERATIONS) -> str:
    """``SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`` (RFC 5803) of an ASCII password."""
    salted = hashlib.pbkdf2_hmac("sha256", password.reveal().encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${iterations}:{_b64(salt)}${_b64(stored)}:{_b64(server)}"


def verifies(verifier: str | None, password: Secret) -> bool:
    """Whether *verifier*, as Postgres stores it, is of *password*."""
    try:
        _, rounds, _ = (verifier or "").split("$")
        iterations, salt = rounds.split(":")
        return scram_verifier(password, base64.b64decode(salt), int(iterations)) == verifier
    except ValueError:
        return False


def signed_role(secret: Secret, role: str) -> Secret:
    """A JWT (HS256) that PostgREST reads as *role*; without expiry, as the platform's anon and service keys are."""
    head, body = (_b64url(json.dumps(part).encode()) for part in _claims(role))
    mac = hmac.digest(secret.reveal().encode(), f"{head}.{body}".encode(), "sha256")
    return Secret(f"{head}.{body}.{_b64url(mac)}")


def load(settings: Settings) -> Keychain:
    """
    The keychain of the settings' key. A key file that does not exist is made, 0600.

    Raises:
        OperatorError: no key, an unreadable one, or a key file that others may read.
    """
    if settings.key is not None:
        return _of_text(settings.key.reveal(), "FLUXPLANE_KEY")
    if settings.key_file is None:
        raise OperatorError("The plane has no key: set FLUXPLANE_KEY, or FLUXPLANE_KEY_FILE to where one may be made.")
    if not settings.key_file.exists():
        _make(settings.key_file)
    return _of_text(_read_private(settings.key_file), "FLUXPLANE_KEY_FILE")


def new_key() -> Secret:
    return Secret(_b64(secrets.token_bytes(KEY_BYTES)))


# ------------------------------------------------------------------ changing the key


def add_next(path: Path) -> bool:
    """Add the key that is to be the next; False if there is one already."""
    lines = _read_private(path).split()
    if any(line.startswith(NEXT) for line in lines):
        return False
    _write(path, [*lines, NEXT + new_key().reveal()])
    return True


def take_next(path: Path) -> bool:
    """Put the next key first; False if there is none."""
    lines = _read_private(path).split()
    coming = [line for line in lines if line.startswith(NEXT)]
    if coming:
        _write(path, [line.removeprefix(NEXT) for line in coming] + [line for line in lines if line not in coming])
    return bool(coming)


def ids(path: Path) -> list[bytes]:
    """The ids of the keys in *path*, the one in use first."""
    return [_id(line) for line in _read_private(path).split()]


def id_of(made: bytes) -> bytes:
    """Which key *made*, something sealed or a nonce, is of."""
    return made[:ID_BYTES]


def _id(line: str) -> bytes:
    return _Key(_decode(line.removeprefix(NEXT), "FLUXPLANE_KEY_FILE")).id


def drop_unused(path: Path, used: Collection[bytes]) -> int:
    """Remove every key but the first, the next, and those whose ids are in *used*; how many."""
    first, *others = _read_private(path).split()
    kept = [line for line in others if line.startswith(NEXT) or _id(line) in used]
    if kept != others:
        _write(path, [first, *kept])
    return len(others) - len(kept)


def _write(path: Path, lines: Collection[str]) -> None:
    """Whole or not at all: what is lost with a key is lost for good."""
    beside = _beside(path, lines)
    try:
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _make(path: Path) -> None:
    """Whole or not at all, and only one of several that start at once: written beside, then linked."""
    beside = _beside(path, [new_key().reveal()])
    try:
        with contextlib.suppress(FileExistsError):
            os.link(beside, path)
    except OSError as failure:
        raise OperatorError(f"The key file cannot be made: {failure.strerror}: {path}") from failure
    finally:
        beside.unlink(missing_ok=True)


def _beside(path: Path, lines: Collection[str]) -> Path:
    """A new 0600 file in the directory of *path*, on the disk; its owner is that of the file it will replace."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            if path.exists() and os.geteuid() == 0:
                os.fchown(file.fileno(), path.stat().st_uid, path.stat().st_gid)
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError as failure:
        beside.unlink(missing_ok=True)
        raise OperatorError(f"The key file cannot be made: {failure.strerror}: {path}") from failure
    return beside


def _read_private(path: Path) -> str:
    try:
        with path.open() as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise OperatorError(f"The key file may be read by others (mode {mode:04o}): chmod 600 {path}")
            return file.read()
    except OSError as failure:
        raise OperatorError(f"The key file cannot be read: {failure.strerror}: {path}") from failure


def _of_text(text: str, what: str) -> Keychain:
    first, *others = text.split() or [""]
    return Keychain(_decode(first, what), *(_decode(one.removeprefix(NEXT), what) for one in others))


def _decode(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        raise OperatorError(f"{what} is not base64.") from None


def _claims(role: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"alg": "HS256", "typ": "JWT"}, {"role": role, "iss": "flux"}


def _derive(key: bytes, purpose: bytes) -> bytes:
    return hmac.digest(key, b"fluxplane/1/" + purpose, "sha256")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
