"""
How is the daemon, and each thing on the way from here to a project's database?

In the order of that way: the daemon, its socket, the token, the control plane, the project, the SSH host, its key, our
own, the resolver and Postgres (those five in ``tunnels.doctor``), the local port; then what is needed now and then: the
keyring, the clock. A check never raises: what goes wrong is its verdict. It is `skip` where it means nothing here, as
the keyring is when a token comes from elsewhere, and where an earlier one failed.
"""

from __future__ import annotations

import os
import platform
import resource
import stat
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Final

from fluxd import wire
from fluxd.clock import Clock
from fluxd.core import errors
from fluxd.keychain import SystemKeyring, TokenFile
from fluxd.plane import Caller, ControlPlane, Tokens
from fluxd.tunnels.doctor import ASK_FOR_PROJECT, examine_way, failed, host_key
from fluxd.tunnels.passphrases import Passphrases
from fluxplane.wire import AccessPlan

# A tunnel opens few files, each client two; below this many left, the next client may be refused.
FEW_FILES: Final = 32
# A plane's Date has seconds; certificates and leases that outlive a boot mind minutes.
SKEW_S: Final = 30.0

# The local port of a caller's project, or of any new one; and its usual one, if another program holds that.
PortOf = Callable[[Caller | None, str | None], tuple[int, int | None]]


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
        port_of: PortOf,
    ) -> None:
        self._socket = socket
        self._state_dir = state_dir
        self._control = control
        self._tokens = tokens
        self._keyring = keyring
        self._clock = clock
        self._ssh_connect_s = ssh_connect_s
        self._passphrases = passphrases
        self._port_of = port_of

    async def examine(self, plane: wire.Plane, ssh: wire.SSH, project: str | None) -> list[wire.Check]:
        """Every check, with *project* those of its database too."""
        token = await _checked("token", lambda: self._check_token(plane))
        reached = await _checked("control plane", lambda: self._check_plane(plane)) if token.verdict == "ok" else None
        answers = reached is not None and reached.verdict != "fail"
        known, caller, plan = await self._project(plane, project) if answers else (_not_tried("project"), None, None)
        return [
            self._check_daemon(),
            self._check_socket(),
            token,
            reached or _not_tried("control plane"),
            known,
            *await examine_way(plan, ssh, self._clock, self._passphrases, connect_s=self._ssh_connect_s),
            self._check_port(caller, project),
            await _checked("keyring", lambda: self._check_keyring(plane)),
            await _checked("clock", lambda: self._check_clock(plane)) if answers else _not_tried("clock"),
        ]

    async def _project(
        self, plane: wire.Plane, project: str | None
    ) -> tuple[wire.Check, Caller | None, AccessPlan | None]:
        if project is None:
            return wire.Check(name="project", verdict="skip", message=ASK_FOR_PROJECT), None, None
        try:
            caller = await self._tokens.resolve(plane)
            plan, _raw = await self._control.plan(caller, project)
        except errors.FluxError as error:
            return failed("project", error), None, None
        return _ok("project", f"{plan.project_name} ({project}) can be opened."), caller, plan

    async def host_key(self, ssh: wire.SSH) -> wire.HostKey:
        """Which key on the way to the SSH host that *ssh* names is not known yet; raises why that cannot be told."""
        await self._passphrases.learn(ssh)
        return await host_key(ssh, self._passphrases, connect_s=self._ssh_connect_s)

    def health(self) -> wire.Health:
        """Whether a tunnel could be opened now, asked without leaving this machine."""
        reasons = [reason for reason in (_files_left(), _unwritable(self._state_dir)) if reason]
        return wire.Health(alive=True, able=not reasons, reasons=reasons)

    def _check_daemon(self) -> wire.Check:
        health = self.health()
        if health.able:
            made_of = f"Python {platform.python_version()}, asyncssh {version('asyncssh')}"
            return _ok("daemon", f"fluxd answers (pid {os.getpid()}, {made_of}); its state is in {self._state_dir}.")
        hint = "Raise `ulimit -n`, or close tunnels; make room on the disk that holds its state."
        return wire.Check(name="daemon", verdict="warn", message=" ".join(health.reasons), hint=hint)

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

    def _check_port(self, caller: Caller | None, project: str | None) -> wire.Check:
        try:
            port, busy = self._port_of(caller, project)
        except errors.FluxError as error:
            return failed("local port", error)
        if busy is None:
            return _ok("local port", f"The tunnel is, or will be, at {port}.")
        said = f"Port {busy} is this project's, but another program holds it; the next opening takes {port}."
        hint = f"`lsof -i :{busy}` tells which. What is saved in your GUI still goes to {busy}: end it, or change that."
        return wire.Check(name="local port", verdict="warn", message=said, hint=hint)

    async def _check_clock(self, plane: wire.Plane) -> wire.Check:
        api_base = self._tokens.base(plane)
        token = await self._tokens.token(api_base, plane.token)
        try:
            ahead_s = await self._control.clock_ahead_s(api_base, token, self._clock.wall)
        except errors.NotSupportedByPlane:
            ahead_s = None
        if ahead_s is None:
            return wire.Check(name="clock", verdict="skip", message="The control plane does not tell the time.")
        if abs(ahead_s) <= SKEW_S:
            return _ok("clock", "It agrees with the control plane's.")
        way = "behind" if ahead_s > 0 else "ahead of"
        said = f"This machine's clock is {abs(ahead_s):.0f} s {way} the control plane's."
        hint = "Set it by the network (`timedatectl set-ntp true`): certificates, and leases across a reboot, go by it."
        return wire.Check(name="clock", verdict="warn", message=said, hint=hint)


async def _checked(name: str, check: Callable[[], Awaitable[wire.Check]]) -> wire.Check:
    try:
        return await check()
    except errors.FluxError as error:
        return failed(name, error)


def _not_tried(name: str) -> wire.Check:
    return wire.Check(name=name, verdict="skip", message="Not tried: an earlier step failed.")


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
