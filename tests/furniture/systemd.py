"""
A real `systemd --user`, as a login gives one, for a user of its own: mary, with an empty home, a bus and a journal.

It runs in private mount, process and cgroup namespaces with its own /run, and shares the network with the tests. Root
is needed to make these; mary has no privilege at all. What is started in there ends with it.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.furniture.needs import needs, needs_program
from tests.furniture.postgres import enterable_directory

# Neither a system user's nor systemd's dynamic users': journald gives every other user a journal of her own.
UID = 4242
BOOT_WITHIN_S = 30.0
ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = sysconfig.get_path("scripts")

# Makes a cgroup for the whole, and removes it when everything in it has ended.
OUTER = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir /run/cgroup
mount -t cgroup2 none /run/cgroup
group=/run/cgroup/flux-test-$$
mkdir $group
chown $UID:$UID $group
sh -c 'echo $$ >"$0/cgroup.procs"
  exec unshare --cgroup --mount --pid --fork --kill-child --mount-proc sh -c "$INNER"' $group || true
find $group -depth -type d -exec rmdir {} +
"""

# Runs as process 1. $REACHABLE: directories that mary must be able to enter, whatever lies above them.
INNER = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t cgroup2 none /sys/fs/cgroup
# Where a login puts it: journald reads from this path whose unit it was that spoke.
group=/sys/fs/cgroup/user.slice/user-$UID.slice/user@$UID.service
mkdir -p $group
for file in '' cgroup.procs cgroup.subtree_control cgroup.threads; do chown $UID:$UID $group/$file; done
number=0
for path in $REACHABLE; do
  number=$((number + 1)); mkdir -p /run/reachable/$number; mount --rbind "$path" /run/reachable/$number
done
for path in $MASKED; do mount -t tmpfs -o mode=0755 tmpfs "$path"; done
number=0
for path in $REACHABLE; do
  number=$((number + 1)); mkdir -p "$path"; mount --rbind /run/reachable/$number "$path"
done
sed "\\$ a mary:x:$UID:$UID::$HOME:/bin/sh" /etc/passwd >/run/passwd
mount --bind /run/passwd /etc/passwd
mkdir -p /var/log/journal /run/user /run/systemd/system
mount -t tmpfs -o mode=0755 tmpfs /var/log/journal
echo 0123456789abcdef0123456789abcdef >/run/machine-id
[ -e /etc/machine-id ] || : >/etc/machine-id
mount --bind /run/machine-id /etc/machine-id
# journald writes to /var/log/journal, with a journal for each user, once it was told to flush.
mkdir -p /run/systemd/journal /var/log/journal/0123456789abcdef0123456789abcdef
: >/run/systemd/journal/flushed
/lib/systemd/systemd-journald &
install -d -o $UID -g $UID -m 0700 /run/user/$UID
echo $$ >$group/cgroup.procs
exec setpriv --reuid=$UID --regid=$UID --clear-groups --inh-caps=-all sh -c "$USER_SESSION"
"""

USER_SESSION = """
cd "$HOME"
dbus-daemon --session --address=$DBUS_SESSION_BUS_ADDRESS --nofork --nopidfile &
/lib/systemd/systemd --user --log-target=journal &
wait
"""


class UserManager:
    """`systemd --user` of mary. `run` is her shell after login; `home` is the same path inside and outside."""

    def __init__(self, home: Path, scripts: Path) -> None:
        self.home = home
        self.scripts = scripts
        self.runtime = Path(f"/run/user/{UID}")
        self._outer: subprocess.Popen[bytes] | None = None
        self._init: int | None = None

    def environment(self, more: Mapping[str, str] = {}) -> dict[str, str]:
        """What a login shell of hers has."""
        return {
            "HOME": str(self.home),
            "USER": "mary",
            "LOGNAME": "mary",
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            "PATH": f"{self.scripts}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "XDG_RUNTIME_DIR": str(self.runtime),
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.runtime}/bus",
            **more,
        }

    def start(self, log: Path, reachable: list[Path]) -> None:
        """Boot it, and wait until it says that it runs."""
        scripts = {"INNER": INNER, "USER_SESSION": USER_SESSION, "UID": str(UID)}
        paths = {"REACHABLE": _shell_list(reachable), "MASKED": _shell_list(_closed_above(reachable))}
        with log.open("wb") as said:
            self._outer = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", OUTER],
                env=self.environment(scripts | paths),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        until = time.monotonic() + BOOT_WITHIN_S
        while not self._runs():
            if self._outer.poll() is not None or time.monotonic() > until:
                self.stop()
                pytest.fail(f"systemd --user did not boot:\n{log.read_text()}", pytrace=False)
            time.sleep(0.05)  # polled: a bus that is not there yet cannot be waited on

    def _runs(self) -> bool:
        self._init = self._init or _grandchild(self._outer)
        if self._init is None:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            # "degraded" too: the machine's own user units are not ours to judge
            said = self.run("systemctl", "--user", "is-system-running", check=False).stdout.strip()
            return said in {"running", "degraded"}
        return False

    def command(self, *argv: str) -> list[str]:
        """*argv* as mary, inside; her environment is to be given by whoever runs it."""
        entered = ["nsenter", f"--target={self._init}", "--mount", "--pid", "--cgroup"]
        become = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
        return [*entered, *become, "env", f"--chdir={self.home}", *argv]

    def run(
        self, *argv: str, check: bool = True, env: Mapping[str, str] = {}, within_s: float = 60.0, text_in: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run *argv* as mary. A failure shows what it said."""
        done = subprocess.run(
            self.command(*argv),
            env=self.environment(env),
            input=text_in,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"{shlex.join(argv)} exited with {done.returncode}:\n{done.stdout}{done.stderr}", pytrace=False)
        return done

    def shell_of(self, env: Mapping[str, str]) -> dict[str, str]:
        """*env* of a lab, with the SSH files that it names as copies of her own: fluxd takes no others."""
        mine = dict(env)
        for name in ("FLUX_DB_TUNNEL_IDENTITY_FILE", "FLUX_DB_TUNNEL_KNOWN_HOSTS"):
            copy = self.home / Path(env[name]).name
            shutil.copyfile(env[name], copy)
            copy.chmod(0o600)
            os.chown(copy, UID, UID)
            mine[name] = str(copy)
        return mine

    def show(self, unit: str, name: str) -> str:
        """One property of *unit*."""
        return self.run("systemctl", "--user", "show", unit, f"--property={name}", "--value").stdout.strip()

    def await_property(self, unit: str, name: str, wanted: str, *, within_s: float = 30.0) -> None:
        until = time.monotonic() + within_s
        while (found := self.show(unit, name)) != wanted:
            if time.monotonic() > until:
                pytest.fail(f"{unit}: {name} is {found!r}, not {wanted!r}\n{self.journal(unit)}", pytrace=False)
            time.sleep(0.05)  # polled: systemctl has no way to wait for a property

    def journal(self, unit: str) -> str:
        """What it said, and what systemd said of it (its SyslogIdentifier= must be its name)."""
        # By identifier too: journald may have read the cgroup before the service was moved into its own.
        about = f"USER_UNIT={unit}.service + SYSLOG_IDENTIFIER={unit}"
        return self.run("journalctl", "--user", "--quiet", "--output=cat", *about.split(), check=False).stdout

    def await_journal(self, unit: str, words: str, *, within_s: float = 30.0) -> str:
        """What *unit* said, as soon as *words* are among it."""
        until = time.monotonic() + within_s
        while words not in (said := self.journal(unit)):
            if time.monotonic() > until:
                pytest.fail(f"{unit} did not say {words!r}, but:\n{said}", pytrace=False)
            time.sleep(0.05)  # polled: the journal is written behind the service's back
        return said

    def outside(self, pid: int) -> int:
        """The pid by which the tests know the process that is *pid* inside."""
        for path in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                numbers = path.read_text().split("NSpid:")[1].splitlines()[0].split()
                if numbers[-1] == str(pid) and len(numbers) > 1 and _init_of(path) == self._namespace():
                    return int(path.parent.name)
        raise ProcessLookupError(pid)

    def _namespace(self) -> Path:
        return Path(f"/proc/{self._init}/ns/pid").readlink()

    def stop(self) -> None:
        """Everything inside ends with its process 1."""
        if self._outer is None:
            return
        if (init := self._init or _grandchild(self._outer)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(init, 9)
        self._outer.wait(timeout=BOOT_WITHIN_S)
        self._outer = self._init = None


def _grandchild(outer: subprocess.Popen[bytes] | None) -> int | None:
    """Process 1 of the namespace: the child of `unshare`, which the outer shell runs."""
    first = _children(outer.pid) if outer is not None else []
    second = _children(first[0]) if first and _runs_program(first[0], "unshare") else []
    return second[0] if second else None


def _init_of(status: Path) -> Path:
    return (status.parent / "ns/pid").readlink()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _runs_program(pid: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == name
    return False


def _closed_above(paths: list[Path]) -> list[Path]:
    """The topmost directories above *paths* that other users may not enter."""
    closed = {next((one for one in reversed(path.parents) if not one.stat().st_mode & 0o001), None) for path in paths}
    return sorted(one for one in closed if one is not None)


def _shell_list(paths: list[Path]) -> str:
    assert not any(set(str(path)) & set(" \t\n'\"\\*?[") for path in paths), paths
    return " ".join(map(str, paths))


@contextlib.contextmanager
def running_user_manager(reachable: list[Path], scripts: Path = Path(SCRIPTS)) -> Iterator[UserManager]:
    """A booted manager; *reachable* directories can be entered by mary wherever they lie, *scripts* are on her PATH."""
    needs(sys.platform == "linux" and os.geteuid() == 0, "Linux, and root to make namespaces")
    needs(Path("/lib/systemd/systemd").exists(), "systemd is not installed")
    for program in ("dbus-daemon", "nsenter", "setpriv", "unshare"):
        needs_program(program)
    with enterable_directory("flux-test-login-") as place:
        home = place / "mary"
        home.mkdir(mode=0o700)
        os.chown(home, UID, UID)
        manager = UserManager(home, scripts)
        try:
            manager.start(place / "boot.log", reachable)
            yield manager
        finally:
            manager.stop()


@pytest.fixture
def user_manager() -> Iterator[UserManager]:
    """mary has just logged in; the programs of this very tree are on her PATH."""
    with running_user_manager([ROOT, Path(sys.prefix), Path(sys.base_prefix)]) as manager:
        yield manager
