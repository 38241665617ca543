"""
The whole product in half a minute, on one machine: what `make demo` runs.

A lab (`fluxplane lab`) stands for the platform; a private fluxd for yours. Through a tunnel to a v1 and one to a v2
project `psql` asks a question with what the GUI block says, as any database program would. Only the installed commands
are used, and nothing is left: exit code 0 means that all of it worked.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from fluxplane import binaries

BIN: Final = Path(sys.executable).parent
READY_WITHIN_S: Final = 120
STOP_WITHIN_S: Final = 30
POLL_S: Final = 0.05

YEASTCOAST_QUESTION: Final = "SELECT name, litres FROM litres_by_strain ORDER BY litres DESC LIMIT 3"
FOUNDRY_QUESTION: Final = "SELECT alloy, count(*), sum(weight_kg) FROM castings GROUP BY alloy ORDER BY alloy"


class DemoFailed(Exception):
    """A step did not do what it should; the text says which."""


def main() -> int:
    begun = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="flux-demo-"))
    home.chmod(0o711)  # run by root, Postgres runs as another user, who must get in
    signal.signal(signal.SIGTERM, _interrupted)
    # Started in the background of a shell it comes ignored, and the programs interrupted below would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with running_lab(home) as lab, running_daemon(home):
            demonstrate(daemon_environment(home) | exported(lab / "env"))
    except (DemoFailed, KeyboardInterrupt, subprocess.SubprocessError) as failed:
        print(f"\nThe demo failed: {str(failed) or 'interrupted'}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(home)
    say(f"Everything is stopped and removed again. {time.monotonic() - begun:.0f} seconds in all.")
    return 0


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def demonstrate(env: Mapping[str, str]) -> None:
    say("v1 dedicated: a tunnel to the project's own Postgres. The password is revealed by a command of its own.")
    with tunnel("yeastcoast", "ffca33f", env) as block:
        password = run(
            "flux db password yeastcoast --hash ffca33f", env, shown="(the password, which this demo keeps to itself)"
        )
        psql(block | {"Password": password.strip()}, YEASTCOAST_QUESTION, env)
    say("v2 pooled: the tunnel comes with a temporary role that can read this project's schema and nothing else.")
    with tunnel("foundry", "5774112", env) as block:
        psql(block, FOUNDRY_QUESTION, env)
        run("fluxctl tunnel list", env)
    say("The commands have ended, and with them the tunnels and the temporary role.")
    left = json.loads(run("fluxctl tunnel list --json", env))["tunnels"]
    if left:
        raise DemoFailed(f"tunnels are left: {left}")


# --------------------------------------------------------------------- what runs


@contextlib.contextmanager
def running_lab(home: Path) -> Iterator[Path]:
    """A lab's directory, once the lab is ready."""
    directory = home / "lab"
    say(f"$ fluxplane lab --dir {directory}")
    with background(home / "lab.log", [BIN / "fluxplane", "lab", "--dir", directory], clean_environment(home)) as lab:
        wait_for(lab, (directory / "lab.json").exists, "the lab")
        print((home / "lab.log").read_text(), end="")
        yield directory


@contextlib.contextmanager
def running_daemon(home: Path) -> Iterator[None]:
    """A fluxd of the demo's own: yours, if one runs, is not touched."""
    env = daemon_environment(home)
    Path(env["FLUXD_SOCKET"]).parent.mkdir(mode=0o700)
    say("$ fluxd &")
    with background(home / "fluxd.log", [BIN / "fluxd"], env) as daemon:
        wait_for(daemon, Path(env["FLUXD_SOCKET"]).exists, "fluxd")
        yield


@contextlib.contextmanager
def tunnel(slug: str, project_hash: str, env: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """`flux db tunnel` in the foreground, until Ctrl+C; what its GUI block says."""
    say(f"$ flux db tunnel {slug} --hash {project_hash}")
    command = [BIN / "flux", "db", "tunnel", slug, "--hash", project_hash]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(env))
    with process, ended(process, signal.SIGINT):
        yield read_block(process)


def read_block(process: subprocess.Popen[str]) -> dict[str, str]:
    """Print what *process* says until it tells how to close the tunnel; answer its `Name: value` lines."""
    assert process.stdout is not None
    block: dict[str, str] = {}
    with watchdog(process):
        for line in process.stdout:
            print(line, end="", flush=True)
            if found := re.fullmatch(r"\s*([A-Z][^:]*): +(.*)\n", line):
                block[found[1]] = found[2]
            if "Ctrl+C" in line:
                return block
    raise DemoFailed(f"the tunnel's command ended by itself with exit code {process.wait()}")


def psql(block: Mapping[str, str], question: str, env: Mapping[str, str]) -> None:
    """Ask as any database program would that was given the GUI block's values."""
    try:
        host, port, user, database = (block[name] for name in ("Host", "Port", "User", "Database"))
        password = block["Password"]
    except KeyError as missing:
        raise DemoFailed(f"the GUI block has no {missing}") from missing
    search_path = block.get("Search path", "public").replace(" ", "")
    command = f"psql -h {host} -p {port} -U {user} -d {database} -c {shlex.quote(question)}"
    secret = {"PGPASSWORD": password, "PGOPTIONS": f"-c search_path={search_path}"}
    run(command, {**env, **secret}, program=find_psql())


def run(command: str, env: Mapping[str, str], *, program: str | None = None, shown: str | None = None) -> str:
    """Run *command* as a person would and show it with its output (or *shown* instead)."""
    say(f"$ {command}")
    name, *arguments = shlex.split(command)
    done = subprocess.run(
        [program or str(BIN / name), *arguments],
        capture_output=True,
        text=True,
        env=dict(env),
        timeout=READY_WITHIN_S,
        check=False,
    )
    print(shown or done.stdout.rstrip(), flush=True)
    if done.returncode != 0:
        raise DemoFailed(f"`{command}` ended with exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def find_psql() -> str:
    """The first psql of PATH, else the one beside the lab's Postgres."""
    return shutil.which("psql") or binaries.find().program("psql")


# --------------------------------------------------------------------- processes


@contextlib.contextmanager
def background(log: Path, command: list[Path | str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=dict(env))
    with process, ended(process, signal.SIGTERM):
        try:
            yield process
        except DemoFailed:
            print(f"\n{log.name}:\n{log.read_text(errors='replace')}", file=sys.stderr)
            raise


@contextlib.contextmanager
def ended(process: subprocess.Popen[str] | subprocess.Popen[bytes], number: signal.Signals) -> Iterator[None]:
    """At the end of the block, politely; killed, and the demo failed, if it doesn't listen."""
    try:
        yield
    finally:
        process.send_signal(number)
        try:
            code = process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    if code not in {0, 130}:
        raise DemoFailed(f"{process.args} ended with exit code {code}")


@contextlib.contextmanager
def watchdog(process: subprocess.Popen[str]) -> Iterator[None]:
    """Ends a command that says nothing for too long, so that reading its output ends too."""
    timer = threading.Timer(READY_WITHIN_S, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def wait_for(process: subprocess.Popen[bytes], ready: object, what: str) -> None:
    assert callable(ready)
    give_up_at = time.monotonic() + READY_WITHIN_S
    while not ready():
        if process.poll() is not None or time.monotonic() > give_up_at:
            raise DemoFailed(f"{what} did not start")
        time.sleep(POLL_S)


# ------------------------------------------------------------------- environment


def clean_environment(home: Path) -> dict[str, str]:
    """Ours without what could lead to another platform, database or SSH host."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FLUX", "PG", "SSH_", "DOCKER_", "NEXT_PUBLIC_FLUX"))
    }
    return kept | {"HOME": str(home)}


def daemon_environment(home: Path) -> dict[str, str]:
    return clean_environment(home) | {
        "FLUXD_SOCKET": str(home / "fluxd/fluxd.sock"),
        "FLUXD_STATE_DIR": str(home / "fluxd/state"),
        "FLUXD_CONFIG_DIR": str(home / "fluxd/config"),
        "FLUXD_LOG_DIR": str(home / "fluxd/log"),
    }


def exported(env_file: Path) -> dict[str, str]:
    """The `export NAME=value` lines of *env_file*, as `. FILE` would take them."""
    lines = (line.removeprefix("export ").split("=", 1) for line in env_file.read_text().splitlines())
    return {name: shlex.split(value)[0] for name, value in lines}


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
