"""
`make faults`: what happens to an open tunnel when the way to its SSH host breaks; writes docs/reliability.md.

A real fluxd, `ssh -L` and autossh (both with the options of the platform's own CLI) stand behind the same fault proxy,
before the same sshd and PostgreSQL. Each fault is made several times; told is the *worst* of them:

- noticed: from the fault until fluxd's events say so (ssh: its process ended; autossh: its ssh is another);
- query: from the fault (where the SSH host was away: from its return) until a client that connects anew has an answer;
- listener: whether the listening socket is still the same one; tasks and descriptors: how many more than before, once
  it is quiet again.

A goal that is missed stands in the table as such, and fails the run.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg

from bench import rig
from bench.world import world
from fluxplane.lab.openssh import force_command
from fluxplane.lab.ports import free_port
from fluxplane.lab.resolver import Table
from tests.furniture.daemon import Daemon
from tests.furniture.faults import fault_proxy
from tests.furniture.processes import descendants

PROJECT = ("yeastcoast", "ffca33f")
CONTAINER, NETWORK = "flux-ffca33f-yeastcoast-db", "flux-network"
# As the platform's own CLI calls ssh.
PLATFORM_OPTIONS = ("ServerAliveInterval=30", "ServerAliveCountMax=3", "ExitOnForwardFailure=yes")
NO_AUTOSSH = "autossh was not tried: it is not installed here (Debian: `apt-get install autossh`)."
NEVER = float("inf")
NOT_ASKED = 0.0
QUIET_WITHIN_S = 10
FLAPS = 100


def elapsed(since):
    return time.monotonic() - since


# ------------------------------------------------------------------- contenders


class Contender:
    """A running tunnel: `port`, `pid`, and what it says of itself."""

    name = ""
    # How long a fault is watched before the answer is "never".
    patience_s = 40.0

    def __init__(self, lab):
        self.lab = lab
        self.port = 0
        self.pid = 0

    async def connect(self):
        password = unquote(urlsplit(self.lab.dedicated_url).password)
        where = {"host": "127.0.0.1", "port": self.port, "user": "postgres", "dbname": "postgres"}
        return await psycopg.AsyncConnection.connect(**where, password=password, connect_timeout=30)

    async def query(self):
        """A new client's query; an error if there is no answer."""
        async with await self.connect() as connection:
            assert await (await connection.execute("SELECT 1")).fetchone() == (1,)

    async def until_query(self, since):
        """Seconds until a client that begins now, and tries again as often as it takes, has its answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.patience_s):
                while not self.is_gone():
                    with contextlib.suppress(psycopg.OperationalError):
                        await self.query()
                        return elapsed(since)
                    await asyncio.sleep(0.01)
        return NEVER

    async def until_noticed(self, since):
        """Seconds until it knows of the fault that was at *since*."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.patience_s):
                return await self.noticed() - since
        return NEVER

    def is_gone(self):
        """Whether its process has ended, so that waiting is of no use."""
        return False

    def listener(self):
        """The inode of its listening socket: another one is another listener."""
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[1] == f"0100007F:{self.port:04X}":
                return fields[9]
        return None

    def descriptors(self):
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def held(self):
        """What may not grow: tasks and descriptors."""
        return 0, self.descriptors()


class Fluxd(Contender):
    name = "fluxd"

    @contextlib.asynccontextmanager
    async def running(self, sshd, ssh_port, *, agent=None):
        with self._daemon() as daemon:
            self.daemon = daemon
            self.pid, self.tasks_file = daemon.process.pid, daemon.home / "tasks"
            self.env = env = dict(self.lab.env) | {
                "FLUX_DB_TUNNEL_SSH_HOST": "127.0.0.1",
                "FLUX_DB_TUNNEL_SSH_USER": sshd.user,
                "FLUX_DB_TUNNEL_SSH_PORT": str(ssh_port),
                "FLUX_DB_TUNNEL_KNOWN_HOSTS": str(sshd.known_hosts),
                "FLUX_DB_TUNNEL_IDENTITY_FILE": str(sshd.identity_file),
            }
            if agent is not None:
                del env["FLUX_DB_TUNNEL_IDENTITY_FILE"]
                env["SSH_AUTH_SOCK"] = str(agent)
            opened = await asyncio.to_thread(
                daemon.flux, "tunnel", "open", PROJECT[0], "--hash", PROJECT[1], "--json", env=env
            )
            assert opened.returncode == 0, opened.stderr
            self.port = json.loads(opened.stdout)["tunnel"]["port"]
            self.lost = asyncio.Queue()
            watching = asyncio.create_task(self._watch(daemon.socket))
            await self.query()
            try:
                yield self
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    @contextlib.contextmanager
    def _daemon(self):
        with rig.directory() as home:
            home.chmod(0o700)
            daemon = Watched(home)
            daemon.start()
            try:
                yield daemon
                daemon.stop()
            finally:
                if daemon.process.poll() is None:
                    daemon.kill()

    async def _watch(self, path):
        reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 20)
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        try:
            while line := await reader.readline():
                if any(f'"name":"{name}"'.encode() in line for name in ("host_lost", "reconnecting")):
                    self.lost.put_nowait(time.monotonic())
        finally:
            writer.transport.abort()

    async def noticed(self):
        return await self.lost.get()

    def forget_news(self):
        while not self.lost.empty():
            self.lost.get_nowait()

    def held(self):
        self.tasks_file.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        while not self.tasks_file.exists() or not self.tasks_file.read_text():
            time.sleep(0.005)
        return int(self.tasks_file.read_text()), self.descriptors()


class Watched(Daemon):
    """The daemon with the fault lab's window."""

    def start(self, **environment):
        argv = [sys.executable, str(rig.HERE / "watched_fluxd.py")]
        env = self.environment | {"FLUXD_TASKS_FILE": str(self.home / "tasks")} | environment
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        give_up_at = time.monotonic() + 30
        while not self.answers():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < give_up_at, "fluxd does not answer"
            time.sleep(0.02)


class SSH(Contender):
    name = "ssh -L"
    program = ("ssh",)
    # ServerAliveInterval times ServerAliveCountMax, and some.
    patience_s = 130.0

    @contextlib.asynccontextmanager
    async def running(self, sshd, ssh_port, *, agent=None):
        self.port = free_port()
        there = urlsplit(self.lab.dedicated_url).port
        _, *words = sshd.ssh(ssh_port, *PLATFORM_OPTIONS)
        argv = [*self.program, "-N", "-L", f"127.0.0.1:{self.port}:127.0.0.1:{there}", *words]
        process = subprocess.Popen(
            argv, env={**os.environ, "AUTOSSH_GATETIME": "0"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self.process, self.pid = process, process.pid
            await asyncio.to_thread(rig.wait_listening, self.port, process)
            self.before = self.ssh_pid()
            yield self
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait)

    def is_gone(self):
        return self.process.poll() is not None

    def ssh_pid(self):
        return self.pid if self.process.poll() is None else None

    async def noticed(self):
        while self.ssh_pid() == self.before:
            await asyncio.sleep(0.01)
        return time.monotonic()

    def forget_news(self):
        self.before = self.ssh_pid()

    def descriptors(self):
        with contextlib.suppress(OSError):
            return super().descriptors()
        return 0


class AutoSSH(SSH):
    name = "autossh"
    program = ("autossh", "-M", "0")

    def ssh_pid(self):
        return next(descendants(self.pid), None)

    def descriptors(self):
        return 0


# ----------------------------------------------------------------------- faults
# Each makes its fault and answers two instants: when it happened, and when the SSH host could be reached again.


async def reset(scene):
    scene.proxy.cut()
    return (time.monotonic(),) * 2


async def finish(scene):
    scene.proxy.hang_up()
    return (time.monotonic(),) * 2


async def blackhole(scene):
    scene.proxy.strand()
    return (time.monotonic(),) * 2


async def freeze(scene):
    """SIGSTOP to sshd and its sessions, until it was noticed or for 20 s; then SIGCONT."""
    server = scene.sshd.server
    pids = [server.process.pid, *server.sessions()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    happened = time.monotonic()
    noticing = asyncio.create_task(scene.contender.noticed())
    await asyncio.wait([noticing], timeout=20)
    scene.noticed = noticing.result() - happened if noticing.done() else NEVER
    noticing.cancel()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return happened, time.monotonic()


async def restart(scene):
    happened = time.monotonic()
    await asyncio.to_thread(scene.sshd.server.stop)
    await asyncio.sleep(1)
    await asyncio.to_thread(scene.sshd.server.start)
    return happened, time.monotonic()


async def wake(scene):
    """Eight hours of sleep, in which the firewall forgot the connection."""
    scene.proxy.strand()
    happened = time.monotonic()
    os.kill(scene.contender.pid, signal.SIGUSR2)
    return happened, happened


async def flaps(scene):
    happened = time.monotonic()
    for _ in range(FLAPS):
        scene.proxy.cut()
        await asyncio.sleep(0.05)
    return happened, time.monotonic()


async def agent_restart(scene):
    """The agent dies and comes back with its key; then the connection breaks."""
    await scene.new_agent()
    return await reset(scene)


async def move(scene):
    """The container comes back with another address; at the old one nobody listens any more."""
    await scene.move()
    scene.noticed = NOT_ASKED  # the SSH host was there all the time
    return (time.monotonic(),) * 2


FAULTS = {
    "RST": reset,
    "FIN": finish,
    "blackhole": blackhole,
    "sshd stopped (SIGSTOP)": freeze,
    "sshd restarted": restart,
    "container moved": move,
    "agent restarted, then RST": agent_restart,
    "wake after 8 h": wake,
    f"{FLAPS} flaps in a row": flaps,
}
ONLY_FLUXD = {"container moved", "agent restarted, then RST", "wake after 8 h"}
# What reliability.md promises: (noticed, query).
GOALS = {
    "RST": (None, 1.0),
    "FIN": (None, 1.0),
    "blackhole": (15.0, None),
    "sshd stopped (SIGSTOP)": (15.0, None),
    "wake after 8 h": (2.0, 2.0),
}


def listens(path):
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


class Scene:
    """One contender behind the proxy. `noticed` is set by a fault that had to wait for it itself."""

    def __init__(self, home, sshd, proxy, contender):
        self.home, self.sshd, self.proxy, self.contender = home, sshd, proxy, contender
        self.noticed = None
        self.agent = None
        self.container = None

    async def new_agent(self):
        if self.agent is not None:
            self.agent.kill()
            await asyncio.to_thread(self.agent.wait)
        path = self.home / "agent"
        path.unlink(missing_ok=True)
        self.agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
        while not listens(path):  # its socket has a name before anybody listens there
            await asyncio.sleep(0.01)
        add = ["ssh-add", "-q", str(self.sshd.identity_file)]
        subprocess.run(add, env={**os.environ, "SSH_AUTH_SOCK": str(path)}, check=True)
        return path

    async def move(self):
        if self.container is not None:
            await self.container.__aexit__(None, None, None)
        self.address = "127.0.0.3" if getattr(self, "address", None) == "127.0.0.2" else "127.0.0.2"
        port = urlsplit(self.contender.lab.dedicated_url).port
        self.container = fault_proxy(port, host=self.address, port=port)
        await self.container.__aenter__()
        table = Table({}, {CONTAINER: {NETWORK: self.address}})
        new = self.home / "table.new"
        new.write_text(table.to_json())
        new.rename(self.home / "table.json")

    async def close(self):
        if self.container is not None:
            await self.container.__aexit__(None, None, None)
        if self.agent is not None:
            self.agent.kill()
            await asyncio.to_thread(self.agent.wait)


async def quiet(contender, before, within_s=QUIET_WITHIN_S):
    """How many more tasks and descriptors than before, once they are no more or *within_s* is over."""
    give_up_at = time.monotonic() + within_s
    more = (NEVER, NEVER)
    while time.monotonic() < give_up_at:
        tasks, descriptors = contender.held()
        more = (max(0, tasks - before[0]), max(0, descriptors - before[1]))
        if more == (0, 0):
            break
        await asyncio.sleep(0.1)
    return more


async def once(fault, scene):
    contender = scene.contender
    contender.forget_news()
    scene.noticed = None
    happened, back = await fault(scene)
    if scene.noticed is None:
        noticed, query = await asyncio.gather(contender.until_noticed(happened), contender.until_query(back))
    else:
        noticed, query = scene.noticed, await contender.until_query(back)
    return noticed, query


@contextlib.asynccontextmanager
async def scene_for(kind, name, lab):
    with rig.directory() as home:
        lines = (f"ForceCommand {force_command(home / 'table.json')}",) if name == "container moved" else ()
        with rig.SSHD(home, lines=lines) as sshd:
            async with fault_proxy(sshd.server.port) as proxy:
                sshd.know(proxy.port)
                scene = Scene(home, sshd, proxy, kind(lab))
                agent = await scene.new_agent() if name.startswith("agent") else None
                if lines:
                    await scene.move()
                try:
                    async with scene.contender.running(sshd, proxy.port, agent=agent):
                        yield scene
                finally:
                    await scene.close()


async def measure(kind, name, lab, times):
    """(noticed, query, listeners lost, tasks, descriptors): the worst of *times*."""
    worst = [0.0, 0.0, 0, 0, 0]
    async with scene_for(kind, name, lab) as scene:
        await scene.contender.query()
        before, listener = scene.contender.held(), scene.contender.listener()
        for _ in range(times):
            noticed, query = await once(FAULTS[name], scene)
            lost = int(scene.contender.listener() != listener)
            worst = [max(pair) for pair in zip(worst, (noticed, query, lost, 0, 0), strict=True)]
            if query == NEVER:
                break
            await asyncio.sleep(0.2)
        worst[3:] = await quiet(scene.contender, before)
    print(f"{kind.name}: {name}: {worst}", file=sys.stderr, flush=True)
    return worst


# ----------------------------------------------------------------------- report


def shown(seconds):
    if seconds == NOT_ASKED:
        return "-"
    return "never" if seconds == NEVER else f"{seconds:.2f} s"


def judged(value, goal):
    return "" if goal is None else f" (≤ {goal:g} s: {'met' if value <= goal else '**missed**'})"


def missed(found):
    """The goals that fluxd missed."""
    for (kind, name), values in found.items():
        if kind == "fluxd":
            goals = zip(("noticed", "new query"), values, GOALS.get(name, (None, None)), strict=False)
            yield from (f"{name}: {what} {shown(value)}" for what, value, goal in goals if goal and value > goal)
            if any(values[2:]):
                yield f"{name}: listeners lost, tasks, descriptors more: {values[2:]}"
            if values[1] == NEVER:
                yield f"{name}: no new client is served"


def report(found, times):
    yield "| fault | fluxd: noticed | fluxd: new query | listeners lost | tasks, fds more | `ssh -L` | autossh |"
    yield "|---|---|---|---|---|---|---|"
    for name in [name for kind, name in found if kind == "fluxd"]:
        noticed, query, lost, tasks, descriptors = found["fluxd", name]
        goals = GOALS.get(name, (None, None))
        own = f"{shown(noticed)}{judged(noticed, goals[0])} | {shown(query)}{judged(query, goals[1])}"
        others = [shown_other(found.get((kind, name))) for kind in ("ssh -L", "autossh")]
        yield f"| {name} | {own} | {lost} | {tasks}, {descriptors} | {' | '.join(others)} |"
    yield ""
    yield f"fluxd: the worst of {times}. `ssh -L` and autossh: noticed / new query / listeners lost, once each; - means"
    yield "not tried." if shutil.which("autossh") else f"not tried. {NO_AUTOSSH}"


def shown_other(values):
    return "-" if values is None else f"{shown(values[0])} / {shown(values[1])} / {values[2]}"


async def run(options, lab):
    kinds = [Fluxd] if options.only_fluxd else [Fluxd, SSH, *([AutoSSH] if shutil.which("autossh") else [])]
    if not shutil.which("autossh"):
        print(NO_AUTOSSH, file=sys.stderr)
    found = {}
    for kind in kinds:
        for name in FAULTS:
            if (kind is Fluxd or name not in ONLY_FLUXD) and options.fault in name:
                found[kind.name, name] = await measure(kind, name, lab, options.times if kind is Fluxd else 1)
    return found


def main():
    parser = rig.options(__doc__, times=5)
    parser.add_argument("--fault", default="", help="only faults with these words in their name")
    parser.add_argument("--only-fluxd", action="store_true")
    options = parser.parse_args()
    with world("--ssh", "openssh") as (lab, _):
        found = asyncio.run(run(options, lab))
    # Part of a matrix is not written.
    rig.publish("faults", report(found, options.times), None if options.fault else options.write)
    if failures := [*missed(found)]:
        sys.exit("Goals missed:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
