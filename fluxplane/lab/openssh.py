"""
A real sshd for the lab: the system's OpenSSH on a high port of loopback, run by and for whoever runs the lab.

Every login gets a ForceCommand instead of a shell, and channels only to the places named (sshd_config(5), PermitOpen).
Blocking, like `postgres`. sshd's session processes outlive their listener, so that `stop` ends them by itself.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fluxplane.lab import resolver
from fluxplane.lab.errors import LabFailed
from fluxplane.lab.ports import free_port
from fluxplane.lab.processes import command_line, descendants, dying_with_us, end_leftover, signal_all, wait_gone

READY_WITHIN_S: Final = 20
STOP_WITHIN_S: Final = 5
POLL_S: Final = 0.02
SBIN: Final = "/usr/sbin:/usr/local/sbin:/sbin:/opt/homebrew/sbin"
# sshd's chroot for what it has not let in yet (sshd(8)); only root's sshd wants it.
PRIVSEP_DIR: Final = Path("/run/sshd")


def find_sshd() -> str:
    """
    The path of the system's sshd, absolute as it must be started.

    Raises:
        LabFailed: there is none.
    """
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")
    if found is None:
        raise LabFailed(
            "There is no OpenSSH server on this machine.",
            hint="Install it (Debian: apt-get install openssh-server), or use `--ssh embedded`.",
        )
    return str(Path(found).absolute())


def force_command(table: Path) -> str:
    """A ForceCommand that answers the resolver's two questions from the `resolver.Table` in *table*."""
    return shlex.join([sys.executable, "-I", "-S", str(Path(resolver.__file__).absolute()), str(table)])


def current_user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


@dataclass
class OpenSSHHost:
    """
    One sshd. Its files are in `home`: sshd_config, authorized_keys, log; the host key is `host_key`.

    `permit_open` are "host:port" as channels name them, or ("any",). `lines` are more of sshd_config(5).
    """

    home: Path
    host_key: Path
    authorized_keys: str
    permit_open: Sequence[str]
    force_command: str | None = None
    lines: Sequence[str] = ()
    # What runs sshd: a prefix of its command line.
    wrapper: Sequence[str] = ()
    host: str = "127.0.0.1"
    port: int | None = None
    user: str = field(default_factory=current_user)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.home / "log"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """
        The listening sshd.

        Raises:
            RuntimeError: it was not started.
        """
        if self._process is None:
            raise RuntimeError("this sshd was not started")
        return self._process

    def start(self) -> None:
        """
        Return once it greets; `port` is the one it listens on, the given one if that was free.

        Raises:
            LabFailed: there is no sshd, or it did not start; with the end of its log.
        """
        program = find_sshd()
        if os.geteuid() == 0:
            PRIVSEP_DIR.mkdir(mode=0o755, exist_ok=True)
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        stop_leftover(self.home)
        (self.home / "authorized_keys").write_text(self.authorized_keys)
        self.port = free_port(self.host, preferred=self.port)
        config = self.home / "sshd_config"
        config.write_text("\n".join(self._config()) + "\n")
        self._process = subprocess.Popen(
            [*dying_with_us(signal.SIGTERM), *self.wrapper, program, "-D", "-f", str(config), "-E", str(self.log)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        if not self._ready():
            self.stop()
            raise LabFailed(f"sshd did not start: {self._last_words()}", hint=f"Its log is {self.log}.")

    def stop(self) -> None:
        """Stop listening and end every session; no process is left when this returns."""
        if self._process is None:
            return
        ending = [self._process.pid, *self.sessions()]
        for number in (signal.SIGCONT, signal.SIGTERM):
            signal_all(ending, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_WITHIN_S)
        signal_all(ending, signal.SIGKILL)
        self._process.wait()
        self._process = None
        wait_gone(ending, within_s=STOP_WITHIN_S)

    def sessions(self) -> list[int]:
        """The processes below the listener: one or two for each connection, and the commands they run."""
        return descendants(self.process.pid)

    def hang_up(self) -> None:
        """End every session; who dials again is let in."""
        ending = self.sessions()
        signal_all(ending, signal.SIGKILL)
        wait_gone(ending, within_s=STOP_WITHIN_S)

    def _config(self) -> Iterator[str]:
        yield f"Port {self.port}"
        yield f"ListenAddress {self.host}"
        yield f"HostKey {self.host_key}"
        yield f"PidFile {self.home / 'pid'}"
        yield f"AuthorizedKeysFile {self.home / 'authorized_keys'}"
        yield f"AllowUsers {self.user}"
        yield f"PermitOpen {' '.join(self.permit_open)}"
        if self.force_command is not None:
            yield f"ForceCommand {self.force_command}"
        yield from self.lines
        # sshd takes the first value that it reads of each keyword; of MaxStartups the last.
        given = {line.split()[0] for line in self.lines}
        yield from (line for line in BASE_CONFIG if line.split()[0] not in given)

    def _ready(self) -> bool:
        give_up_at = time.monotonic() + READY_WITHIN_S
        while self.process.poll() is None and time.monotonic() < give_up_at:
            if _greeting(self.host, self.port or 0).startswith(b"SSH-2.0-"):
                return True
            time.sleep(POLL_S)
        return False

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace").strip()[-1000:] if self.log.exists() else "it said nothing"


BASE_CONFIG: Final = (
    "UsePAM no",
    "StrictModes no",
    "PermitRootLogin prohibit-password",
    "AuthenticationMethods publickey",
    "PasswordAuthentication no",
    "KbdInteractiveAuthentication no",
    "AllowTcpForwarding local",
    "AllowStreamLocalForwarding no",
    "AllowAgentForwarding no",
    "X11Forwarding no",
    "PermitTTY no",
    "PermitTunnel no",
    "PermitUserRC no",
    "GatewayPorts no",
    "UseDNS no",
    "MaxStartups 100:30:200",
    "LogLevel VERBOSE",
)


def _greeting(host: str, port: int) -> bytes:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1) as connection:
        return connection.recv(64)
    return b""


def stop_leftover(home: Path) -> None:
    """End the sshd that still runs from *home* because whoever started it was killed, and its sessions."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        pid = int((home / "pid").read_text())
        sessions = descendants(pid) if str(home) in command_line(pid) else []
        end_leftover(pid, str(home), signal.SIGTERM, within_s=STOP_WITHIN_S)
        signal_all(sessions, signal.SIGKILL)
