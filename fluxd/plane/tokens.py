"""
Which token belongs to this request: a token is only ever sent to the base it was made for.

A cloned repository's ``.env`` may name any base; it must not collect tokens made for another. So each place a token is
found in says which base it counts for: the request names its own, our environment's is for our environment's base, the
keyring keeps one per base, and the existing CLI's file names none and counts for the default base alone.

The account behind a token is asked once (``auth/verify``) and remembered under the token's hash, so that a daemon that
restarts offline still knows whose ports are whose.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from fluxd import wire
from fluxd.core import errors
from fluxd.plane import answers
from fluxd.plane.base import DEFAULT_API_BASE, Caller, normalised
from fluxd.plane.control import ControlPlane
from fluxplane.wire import Secret

log = logging.getLogger(__name__)

MOST_ACCOUNTS: Final = 512
LARGEST_FILE: Final = 1024 * 1024


class Keychain(Protocol):
    """Where logins are kept, one token for each base."""

    async def get(self, api_base: str) -> Secret | None:
        """
        The token kept for *api_base*.

        Raises:
            KeyringUnavailable: it is locked, or this machine has none.
        """


class Tokens:
    """Finds the token for a request, and the account behind it."""

    def __init__(
        self,
        *,
        control: ControlPlane,
        keychain: Keychain,
        state_dir: Path,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._control = control
        self._keychain = keychain
        self._environ = environ
        self._accounts = _Accounts(state_dir / "accounts.json")
        self._asking: dict[str, asyncio.Lock] = {}

    async def resolve(self, plane: wire.Plane) -> Caller:
        """
        Who asks *plane*: its base in normal form, the token that belongs there, the account behind that.

        Raises:
            NotAuthenticated: no token belongs to that base, or the plane does not accept it.
            BadAPIBase, InsecureAPIBase: no token is sent there at all.
            PlaneUnreachable: the account behind a new token cannot be asked for now.
        """
        api_base = self.base(plane)
        token = await self.token(api_base, plane.token)
        return Caller(api_base, token, await self.account(api_base, token))

    def base(self, plane: wire.Plane) -> str:
        """The base meant by *plane*. A token that came without one was made for the default base."""
        if plane.api_base is not None and plane.api_base.strip():
            return normalised(plane.api_base)
        return DEFAULT_API_BASE if plane.token else self._own_base()

    async def token(self, api_base: str, given: Secret | None = None) -> Secret:
        """
        The token for *api_base*: the one *given* with it, our environment's, the keyring's, the existing CLI's.

        Raises:
            NotAuthenticated: there is none; the detail says when the keyring could not be asked.
        """
        if given and given.reveal().strip():
            return Secret(given.reveal().strip())
        if own := self._from_environment(api_base):
            return own
        kept, trouble = await self._from_keyring(api_base)
        found = kept or self._from_existing_cli(api_base)
        if found is None:
            reason = f"There is no token for {api_base}."
            raise answers.not_authenticated(api_base, f"{reason} {trouble}" if trouble else reason)
        return found

    async def account(self, api_base: str, token: Secret) -> str:
        """Whose *token* this is, asked once and remembered."""
        key = _key(api_base, token)
        if known := self._accounts.get(key):
            return known
        # Twenty tunnels opened at once ask once.
        async with self._asking.setdefault(key, asyncio.Lock()):
            known = self._accounts.get(key) or await self._ask(api_base, token, key)
            self._accounts.put(key, known)
        self._asking.pop(key, None)
        return known

    async def _ask(self, api_base: str, token: Secret, key: str) -> str:
        try:
            return (await self._control.verify(api_base, token)).user
        except errors.NotSupportedByPlane:
            return f"token-{key[:12]}"  # docs/decisions/0003

    def remember(self, api_base: str, token: Secret, account: str) -> None:
        """What a login has just been told."""
        self._accounts.put(_key(api_base, token), account)

    # ------------------------------------------------------------- places to look

    def _own_base(self) -> str:
        return normalised(self._environ.get("FLUX_API_BASE"))

    def _from_environment(self, api_base: str) -> Secret | None:
        text = self._environ.get("FLUX_API_TOKEN", "").strip()
        return Secret(text) if text and api_base == self._own_base() else None

    async def _from_keyring(self, api_base: str) -> tuple[Secret | None, str | None]:
        try:
            return await self._keychain.get(api_base), None
        except errors.KeyringUnavailable as error:
            return None, error.message

    def _from_existing_cli(self, api_base: str) -> Secret | None:
        """The existing CLI's file names no base: its token is for the default one."""
        if api_base != DEFAULT_API_BASE:
            return None
        home = self._environ.get("HOME") or str(Path.home())
        body = _json_object(_own_file(Path(home) / ".flux" / "config.json"))
        text = body.get("token")
        return Secret(text.strip()) if isinstance(text, str) and text.strip() else None


def _key(api_base: str, token: Secret) -> str:
    """Names a token without holding it: tokens are 128 random bits, so their hash tells nothing."""
    return hashlib.sha256(f"fluxd account\0{api_base}\0{token.reveal()}".encode()).hexdigest()


def _own_file(path: Path) -> bytes:
    """The bytes of a regular file of our own, b"" where there is none."""
    try:
        # A pipe in its place must not keep us waiting.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
            return file.read(LARGEST_FILE) if ours else b""
    except OSError:
        return b""


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class _Saved(msgspec.Struct, frozen=True):
    version: int
    accounts: dict[str, str]


class _Accounts:
    """Token hash → account, on disk. A file that cannot be read or written only costs asking again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._load()

    def get(self, key: str) -> str | None:
        return self._known.get(key)

    def put(self, key: str, account: str) -> None:
        if self._known.get(key) == account:
            return
        self._known.pop(key, None)
        self._known[key] = account
        for oldest in list(self._known)[:-MOST_ACCOUNTS]:
            del self._known[oldest]
        self._save()

    def _load(self) -> dict[str, str]:
        try:
            saved = msgspec.json.decode(_own_file(self._path), type=_Saved)
        except msgspec.DecodeError:
            return {}
        return saved.accounts if saved.version == 1 else {}

    def _save(self) -> None:
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(file, "wb") as saved:
                saved.write(msgspec.json.encode(_Saved(version=1, accounts=self._known)))
            beside.replace(self._path)
        except OSError as error:
            log.warning("the account behind a token could not be remembered: %s", error)
