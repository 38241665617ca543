"""
Where logins are kept, one token for each control plane's base: the system keyring, or a file that the user named.

The keyring library is imported on first use (it takes 180 ms) and asked in threads, each question bounded in time: a
locked collection may wait for a dialogue that nobody sees. Where there is no keyring nothing is stored in clear text
instead; the caller is told. The file takes the keyring's place only where the settings say so (`token_file`).
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from fluxd.core.errors import KeyringUnavailable
from fluxplane.wire import Secret

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

T = TypeVar("T")

SERVICE: Final = "fluxd"
ASK_WITHIN_S: Final = 5.0
# Keeping a login may need the user to unlock the keyring in a dialogue.
KEEP_WITHIN_S: Final = 60.0
LARGEST_FILE: Final = 1024 * 1024


class SystemKeyring:
    """The keyring of this login session."""

    kind = "keyring"

    async def get(self, api_base: str) -> Secret | None:
        """
        The token kept for *api_base*.

        Raises:
            KeyringUnavailable: there is no keyring, it is locked, or it does not answer.
        """
        text = await _asked(lambda ring: ring.get_password(SERVICE, api_base), ASK_WITHIN_S)
        return Secret(text) if text else None

    async def put(self, api_base: str, token: Secret) -> None:
        """Keep *token* for *api_base*. Raises as `get`."""
        await _asked(lambda ring: ring.set_password(SERVICE, api_base, token.reveal()), KEEP_WITHIN_S)

    async def delete(self, api_base: str) -> bool:
        """Forget the token for *api_base*; whether there was one. Raises as `get`."""

        def forget(ring: KeyringBackend) -> bool:
            if ring.get_password(SERVICE, api_base) is None:
                return False
            ring.delete_password(SERVICE, api_base)
            return True

        return await _asked(forget, KEEP_WITHIN_S)

    async def name(self) -> str:
        """What kind of keyring this is, for people. Raises as `get`."""
        return await _asked(lambda ring: str(ring.name), ASK_WITHIN_S)


class TokenFile:
    """A file of the user's own with mode 0600, one line `API_BASE TOKEN` for each control plane."""

    kind = "file"

    def __init__(self, path: Path) -> None:
        self._path = path

    async def get(self, api_base: str) -> Secret | None:
        """
        The token kept for *api_base*.

        Raises:
            KeyringUnavailable: others may read the file, or it cannot be read or written.
        """
        text = self._lines().get(api_base)
        return Secret(text) if text else None

    async def put(self, api_base: str, token: Secret) -> None:
        """Keep *token* for *api_base*. Raises as `get`."""
        self._write({**self._lines(), api_base: token.reveal()})

    async def delete(self, api_base: str) -> bool:
        """Forget the token for *api_base*; whether there was one. Raises as `get`."""
        kept = self._lines()
        found = kept.pop(api_base, None) is not None
        if found:
            self._write(kept)
        return found

    async def name(self) -> str:
        """What this is, for people. Raises as `get`."""
        self._lines()
        return f"The token file {self._path}"

    def _lines(self) -> dict[str, str]:
        try:
            with os.fdopen(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                self._check(os.fstat(file.fileno()))
                text = file.read(LARGEST_FILE).decode("ascii", "replace")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._unusable(f"it cannot be read: {error.strerror}") from error
        words = [line.split() for line in text.splitlines() if not line.lstrip().startswith("#")]
        return {pair[0]: pair[1] for pair in words if len(pair) == len(("base", "token"))}

    def _check(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise self._unusable("it must be a regular file of yours")
        if found.st_mode & 0o077:
            raise self._unusable(f"it has mode {stat.S_IMODE(found.st_mode):04o}; `chmod 600` it")

    def _write(self, kept: dict[str, str]) -> None:
        beside = self._path.with_name(f"{self._path.name}.new")
        try:
            beside.unlink(missing_ok=True)
            file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(file, "w", encoding="ascii") as out:
                out.writelines(f"{api_base} {token}\n" for api_base, token in kept.items())
            beside.replace(self._path)
        except OSError as error:
            raise self._unusable(f"it cannot be written: {error.strerror}") from error

    def _unusable(self, reason: str) -> KeyringUnavailable:
        return KeyringUnavailable(
            f"The token file cannot be used: {reason}.",
            detail=str(self._path),
            hint="The daemon's `token_file` setting names it: `fluxctl config show`.",
        )


async def _asked(question: Callable[[KeyringBackend], T], within_s: float) -> T:
    """
    The answer to *question*, asked in a thread of its own.

    A daemon thread rather than the loop's executor: one that hangs in D-Bus must neither keep the process from ending
    nor take a place that others wait for.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def ask() -> None:
        try:
            outcome = question(_keyring())
        except BaseException as error:  # noqa: BLE001 - whatever a backend raises is the caller's to hear
            _tell(loop, answer, None, error)
        else:
            _tell(loop, answer, outcome, None)

    threading.Thread(target=ask, name="keyring", daemon=True).start()
    try:
        async with asyncio.timeout(within_s):
            return await answer
    except TimeoutError as error:
        raise KeyringUnavailable("The system keyring does not answer; it may wait to be unlocked.") from error


def _tell(
    loop: asyncio.AbstractEventLoop, answer: asyncio.Future[T], outcome: T | None, error: BaseException | None
) -> None:
    def settle() -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(outcome)  # type: ignore[arg-type]
        else:
            answer.set_exception(_as_problem(error))

    if not loop.is_closed():
        loop.call_soon_threadsafe(settle)


def _keyring() -> KeyringBackend:
    import keyring  # noqa: PLC0415 - 180 ms that most requests need not wait for

    ring = keyring.get_keyring()
    if any(_keeps_nothing_safe(one) for one in getattr(ring, "backends", [ring])):
        raise KeyringUnavailable(
            "This machine has no system keyring.",
            hint="Set FLUX_API_TOKEN, or have the daemon keep logins in a file of mode 0600: `token_file` in its "
            "config.toml, FLUXD_TOKEN_FILE or `fluxd --token-file`. Nothing was stored in clear text.",
        )
    return ring


def _keeps_nothing_safe(ring: object) -> bool:
    """No backend at all, one that forgets, or one that writes clear text."""
    kind = type(ring)
    return kind.__module__ in {"keyring.backends.fail", "keyring.backends.null"} or "Plaintext" in kind.__name__


def _as_problem(error: BaseException) -> KeyringUnavailable:
    if isinstance(error, KeyringUnavailable):
        return error
    kind = type(error).__name__
    if kind in {"KeyringLocked", "LockedException", "PromptDismissedException"}:
        return KeyringUnavailable("The system keyring is locked.", detail=kind)
    # The text of a foreign exception may hold anything; its kind does not.
    return KeyringUnavailable(detail=kind)
