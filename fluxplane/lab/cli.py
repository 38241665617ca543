"""`fluxplane lab`: run a lab in the foreground until Ctrl+C or SIGTERM, and say what to type next."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from fluxplane import binaries
from fluxplane.lab import box, directory
from fluxplane.lab.contents import PROJECTS

READWRITE: Final = "FLUX_DB_ACCESS_ALLOW_READWRITE"
MODES: Final = {"v1_dedicated": "v1 dedicated", "v2_shared": "v2 pooled"}


def add(commands: Any) -> None:
    """Add the command to *commands*, argparse's subparsers."""
    parser = commands.add_parser(
        "lab",
        help="a platform in a box on loopback, for trying out, demos and tests",
        description="Runs two Postgres servers, an SSH host and the control plane on loopback, until Ctrl+C.",
    )
    parser.add_argument("--dir", type=Path, help="keep everything here, for the next run too (default: temporary)")
    parser.add_argument("--ssh", choices=("embedded", "openssh"), default="embedded", help="which kind of SSH host")
    parser.add_argument("--listen", type=loopback_address, metavar="HOST:PORT", help="the control plane's address")
    parser.add_argument(
        "--contract-only", action="store_true", help="without our extensions, as the existing platform is"
    )
    parser.set_defaults(run=run)


def loopback_address(text: str) -> tuple[str, int]:
    """
    ``HOST:PORT``, IPv6 in brackets, of this machine's loopback.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    host, colon, port = text.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    try:
        if colon and ipaddress.ip_address(host).is_loopback and 0 <= int(port) <= 65535:
            return host, int(port)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a loopback address and port, such as 127.0.0.1:8080")


async def run(arguments: argparse.Namespace) -> int:
    """Exit code 0 when asked to stop, 1 when something failed."""
    wishes = box.Wishes(
        ssh=arguments.ssh,
        listen=arguments.listen,
        contract_only=arguments.contract_only,
        allow_readwrite=os.environ.get(READWRITE, "").strip().lower() in {"1", "true", "yes"},
    )
    try:
        with stopped_by_signals():
            await _run(arguments.dir, wishes)
    except asyncio.CancelledError:
        return 0
    except binaries.Unusable as failed:
        print(f"fluxplane lab: {failed.message}\n  {failed.hint}", file=sys.stderr)
    return 1


async def _run(path: Path | None, wishes: box.Wishes) -> None:
    as_other_user = binaries.runner().changed
    with _place(path) as place, directory.opened(place, enterable=as_other_user) as own:
        logging.getLogger("asyncssh").setLevel(logging.WARNING)  # else a line for every channel
        print("Starting a lab …", flush=True)
        async with box.running(own, wishes) as lab:
            print(summary(lab, wishes, kept=path is not None), flush=True)
            failed = await lab.watch()
    raise failed


@contextlib.contextmanager
def _place(path: Path | None) -> Iterator[Path]:
    """*path*, or a temporary directory that is gone afterwards."""
    if path is not None:
        yield path.absolute()
        return
    temporary = Path(tempfile.mkdtemp(prefix="fluxplane-lab-"))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Ctrl+C, SIGTERM and a closed terminal cancel the current task, once: a second one can't disturb tidying up."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, _once(task.cancel))
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _once(act: Callable[[], object]) -> Callable[[], None]:
    remaining = [act]

    def handler() -> None:
        if remaining:
            remaining.pop()()

    return handler


def summary(lab: box.Lab, wishes: box.Wishes, *, kept: bool) -> str:
    """What runs and what to type next; secrets only by the name of the file they are in."""
    major = lab.dedicated.installation.major
    own = lab.directory.path
    projects = [f"  {slug:<12} --hash {hash_}   {MODES[mode]}" for slug, hash_, mode in PROJECTS]
    return "\n".join(
        [
            "The lab is ready.",
            "",
            f"  control plane   {lab.api_base}",
            f"  SSH host        {lab.ssh.user}@{lab.ssh.host}:{lab.ssh.port} ({wishes.ssh})",
            f"  Postgres {major:<6} 127.0.0.1:{lab.dedicated.port} (dedicated), 127.0.0.1:{lab.pooled.port} (pool)",
            f"  read/write      {'on' if wishes.allow_readwrite else f'off for pooled projects ({READWRITE}=1)'}",
            "",
            *projects,
            "",
            "In another terminal:",
            f"  . {shlex.quote(str(lab.directory.env))}",
            "  flux db tunnel foundry --hash 5774112",
            "  flux db shell yeastcoast --hash ffca33f",
            "",
            f"Secrets (0600): {own / 'env'}, {own / 'lab.json'}",
            f"Ctrl+C stops it all; {own} {'is kept for the next run' if kept else 'is removed then'}.",
        ]
    )
