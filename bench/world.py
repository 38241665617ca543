"""A lab and a daemon for a benchmark: the tests' own furniture, through the installed commands."""

import contextlib
import shutil
import tempfile
from pathlib import Path

from tests.furniture.daemon import Daemon
from tests.furniture.lab import running_lab
from tests.furniture.postgres import enterable_directory
from tests.furniture.processes import command

__all__ = ["command", "fresh_daemon", "world"]


@contextlib.contextmanager
def world(*arguments):
    """A lab with *arguments*, and a fluxd that never heard of it."""
    with (
        enterable_directory("flux-lab-") as home,
        running_lab(home / "lab", *arguments) as lab,
        fresh_daemon() as daemon,
    ):
        yield lab, daemon


@contextlib.contextmanager
def fresh_daemon(**environment):
    home = Path(tempfile.mkdtemp(prefix="fluxd-"))
    daemon = Daemon(home)
    try:
        daemon.start(**environment)
        yield daemon
        daemon.stop()
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()
        shutil.rmtree(home)
