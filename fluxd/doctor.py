"""
How is the daemon? Its own checks: the socket, the keyring, the token, the control plane; with a project, its plan.

The way from there to the project's database is examined in ``tunnels.doctor``. A check never raises: what goes wrong is
its verdict. A step is `skip` where it means nothing here, as the keyring is when a token comes from elsewhere.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from fluxd import wire
from fluxd.clock import Clock
from fluxd.core import errors
from fluxd.keychain import SystemKeyring, TokenFile
from fluxd.plane import ControlPlane, Tokens
from fluxd.tunnels.doctor import examine_way, failed, host_key
from fluxd.tunnels.passphrases import Passphrases

# A tunnel opens few files, each client two; below this many left, the next client may be refused.
FEW_FILES: Final = 32


class Doctor:
    """Examines this daemon for one caller."""

    def __init__(
        self,
        *,
        socket: Path,
        state_dir: Path,
        control: ControlPlane,
        tokens: Tokens,
        keyring: SystemKeyring | TokenFile,
        clock: Clock,
        ssh_connect_s: float,
        passphrases: Passphrases,
    ) -> None:
        self._socket = socket
        self._state_dir = state_dir
        self._control = control
        self._tokens = tokens
        self._keyring = keyring
        self._clock = clock
        self._ssh_connect_s = ssh_connect_s
        self._passphrases = passphrases

    async def examine(self, plane: wire.Plane, ssh: wire.SSH, project: str | None) -> list[wire.Check]:
        """Every check, in the order of the way from here to the control plane, and with *project* to its Postgres."""
        checks = [
            self._check_daemon(),
            self._check_socket(),
            await _checked("keyring", lambda: self._check_keyring(plane)),
            await _checked("token", lambda: self._check_token(plane)),
            await _checked("control plane", lambda: self._check_plane(plane)),
        ]
        return checks if project is None else [*checks, *await self._way(plane, ssh, project)]

    async def _way(self, plane: wire.Plane, ssh: wire.SSH, project: str) -> list[wire.Check]:
        try:
            plan, _raw = await self._control.plan(await self._tokens.resolve(plane), project)
        except errors.FluxError as error:
            return [failed("project", error)]
        known = _ok("project", f"{plan.project_name} ({project}) can be opened.")
        way = await examine_way(plan, ssh, self._clock, self._passphrases, connect_s=self._ssh_connect_s)
        return [known, *way]

    async def host_key(self, ssh: wire.SSH) -> wire.HostKey:
        """Which key on the way to the SSH host that *ssh* names is not known yet; raises why that cannot be told."""
        return await host_key(ssh, connect_s=self._ssh_connect_s)

    def health(self) -> wire.Health:
        """Whether a tunnel could be opened now, asked without leaving this machine."""
        reasons = [reason for reason in (_files_left(), _unwritable(self._state_dir)) if reason]
        return wire.Health(alive=True, able=not reasons, reasons=reasons)

    def _check_daemon(self) -> wire.Check:
        health = self.health()
        if health.able:
            return _ok("daemon", f"fluxd answers (pid {os.getpid()}).")
        return wire.Check(name="daemon", verdict="warn", message=" ".join(health.reasons))

    def _check_socket(self) -> wire.Check:
        try:
            directory, socket = self._socket.parent.lstat(), self._socket.lstat()
        except OSError as error:
            return failed("socket", errors.SocketUnsafe(detail=f"{self._socket}: {error.strerror}"))
        if directory.st_mode & 0o077 or socket.st_mode & 0o077:
            modes = f"{stat.S_IMODE(directory.st_mode):04o} and {stat.S_IMODE(socket.st_mode):04o}"
            return failed("socket", errors.SocketUnsafe(f"Directory and socket have modes {modes}."))
        return _ok("socket", f"{self._socket} is private to you.")

    async def _check_keyring(self, plane: wire.Plane) -> wire.Check:
        if plane.token:
            return wire.Check(name="keyring", verdict="skip", message="Not needed: the token comes from your shell.")
        try:
            return _ok("keyring", f"{await self._keyring.name()} can be asked.")
        except errors.KeyringUnavailable as error:
            # Where the token comes from elsewhere, nobody misses it.
            await self._tokens.token(self._tokens.base(plane))
            return wire.Check(name="keyring", verdict="skip", message=f"Not needed for your token. {error.message}")

    async def _check_token(self, plane: wire.Plane) -> wire.Check:
        api_base = self._tokens.base(plane)
        await self._tokens.token(api_base, plane.token)
        return _ok("token", f"There is a token for {api_base}.")

    async def _check_plane(self, plane: wire.Plane) -> wire.Check:
        api_base = self._tokens.base(plane)
        token = await self._tokens.token(api_base, plane.token)
        try:
            verified = await self._control.verify(api_base, token)
        except errors.NotSupportedByPlane:
            return wire.Check(
                name="control plane", verdict="warn", message=f"{api_base} answers, but does not say who you are."
            )
        return _ok("control plane", f"{api_base} knows you as {verified.user}.")


async def _checked(name: str, check: Callable[[], Awaitable[wire.Check]]) -> wire.Check:
    try:
        return await check()
    except errors.FluxError as error:
        return failed(name, error)


def _ok(name: str, message: str) -> wire.Check:
    return wire.Check(name=name, verdict="ok", message=message)


def _files_left() -> str | None:
    allowed, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir("/dev/fd"))  # noqa: PTH208 - names only
    except OSError as error:
        return f"{errors.TooManyOpenFiles.summary} ({error.strerror})"
    return None if allowed - used >= FEW_FILES else f"{used} of {allowed} files are open already."


def _unwritable(directory: Path) -> str | None:
    nearest = next(one for one in (directory, *directory.parents) if one.exists())
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"{directory} cannot be written."
