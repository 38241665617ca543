"""
The benchmarks' furniture: one real sshd, one target, and the contenders that forward to it.

A contender is a process that listens on loopback for each of some ports behind the SSH host: `ssh -N -L` with a cipher,
or fluxd. All of them meet the same sshd, target and loads.
"""

import argparse
import contextlib
import json
import os
import platform
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fluxplane import binaries
from fluxplane.lab import keys
from fluxplane.lab.openssh import OpenSSHHost
from fluxplane.lab.ports import free_port
from fluxplane.lab.postgres import Server
from fluxplane.wire import Secret

HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")
PASSWORD = "bench"
SUDDEN = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "300"}


@contextlib.contextmanager
def directory():
    path = Path(tempfile.mkdtemp(prefix="flux-bench-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path)


class SSHD:
    """A real sshd, the key to it, and what a client must know of it."""

    def __init__(self, home, *, lines=()):
        self.identity_file, self.known_hosts = home / "id_ed25519", home / "known_hosts"
        self.host_key = keys.private_key(home / "host_key")
        client = keys.private_key(self.identity_file)
        self.server = OpenSSHHost(
            home / "sshd", home / "host_key", keys.public_line(client), permit_open=("any",), lines=lines
        )
        self.user = pwd.getpwuid(os.geteuid()).pw_name

    def __enter__(self):
        self.server.start()
        self.know(self.server.port)
        return self

    def __exit__(self, *_):
        self.server.stop()

    def know(self, port):
        """Let clients trust this host on *port* too, as through a proxy."""
        with self.known_hosts.open("a") as file:
            file.write(keys.known_hosts_line("127.0.0.1", port, self.host_key))

    def ssh(self, port=None, *options):
        """`ssh …` with the destination last: options of one's own go before it."""
        fixed = (f"UserKnownHostsFile={self.known_hosts}", "BatchMode=yes", "StrictHostKeyChecking=yes")
        words = [word for option in (*fixed, *options) for word in ("-o", option)]
        where = ["-p", str(port or self.server.port), f"{self.user}@127.0.0.1"]
        return ["ssh", "-F", "none", *words, "-i", str(self.identity_file), *where]


@contextlib.contextmanager
def running(argv, **more):
    """A process of ours, ended at the end."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, **more)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@contextlib.contextmanager
def target():
    """The port of a `target.py serve`."""
    with running([sys.executable, "-S", str(HERE / "target.py"), "serve"]) as process:
        yield int(process.stdout.readline())


@contextlib.contextmanager
def postgres(home):
    who = binaries.runner()
    usable = binaries.reachable(binaries.embedded(18), who, home / "bin")
    with Server(home / "cluster", usable, who, Secret(PASSWORD), SUDDEN) as server:
        yield server


def rss_mb(pid):
    """Resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


class Forwarder:
    """A running contender: `ports` on loopback, one for each port behind the SSH host, and its `pid`."""

    def __init__(self, process, ports):
        self.pid, self.ports = process.pid, ports

    def cpu_s(self):
        """User and system time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_mb(self):
        return rss_mb(self.pid)


@contextlib.contextmanager
def openssh(sshd, to, *, cipher=None, ssh_port=None, options=()):
    """`ssh -N -L` to each port of *to*, ready."""
    ports = [free_port() for _ in to]
    forwards = [word for port, there in zip(ports, to, strict=True) for word in ("-L", f"{port}:127.0.0.1:{there}")]
    argv = sshd.ssh(ssh_port, "ExitOnForwardFailure=yes", *options)
    with running([argv[0], "-N", *(["-c", cipher] if cipher else []), *forwards, *argv[1:]]) as process:
        for port in ports:
            wait_listening(port, process)
        yield Forwarder(process, ports)


@contextlib.contextmanager
def fluxd(sshd, to, *, ssh_port=None):
    """fluxd's forwards to each port of *to*, ready."""
    argv = [sys.executable, str(HERE / "fluxd_forward.py"), "--ssh-port", str(ssh_port or sshd.server.port)]
    argv += ["--user", sshd.user, "--identity-file", str(sshd.identity_file), "--known-hosts", str(sshd.known_hosts)]
    with running([*argv, *(word for port in to for word in ("--to", str(port)))]) as process:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("fluxd's forward did not start")
        yield Forwarder(process, json.loads(line))


def wait_listening(port, process, within_s=15):
    give_up_at = time.monotonic() + within_s
    while time.monotonic() < give_up_at and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.01)
    raise RuntimeError(f"nothing listens on {port}")


def options(description, **numbers):
    """The command line of every benchmark: its numbers, and where to write what it measured."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default}")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace what FILE has between this one's marks")
    return parser


def publish(mark, lines, file):
    """Print *lines*, and put them between `<!-- mark -->` and `<!-- /mark -->` of *file*."""
    text = "\n".join([*lines, "", f"Measured {time.strftime('%Y-%m-%d')}: {machine()}."])
    print(text)
    if file is not None:
        before, _, rest = file.read_text().partition(f"<!-- {mark} -->\n")
        _, _, after = rest.partition(f"<!-- /{mark} -->")
        file.write_text(f"{before}<!-- {mark} -->\n\n{text}\n\n<!-- /{mark} -->{after}")


def machine():
    """What a figure depends on."""
    ssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.split(",")[0]
    version = f"Python {platform.python_version()}, {ssh}"
    cores = f"{os.cpu_count()} cores of {platform.machine()} {platform.system()} {platform.release()}"
    return f"{cores}, {version}; load average {os.getloadavg()[0]:.1f} at the end (ours alone is about 2)"
