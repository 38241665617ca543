"""
A whole `fluxplane lab`, run by the installed command, one of each kind for the session.

`lab` is the one with the embedded SSH host, `openssh_lab` the one with a real sshd, `each_lab` both in turn. After a
test that took one of them its daemons are stopped, and no temporary role that began in it is left in the pool.
"""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.furniture import leaks
from tests.furniture.daemon import stop_all
from tests.furniture.needs import needs
from tests.furniture.postgres import enterable_directory, no_role_left
from tests.furniture.processes import alive, clean_environment, command, descendants, end, exported, wait_until
from tests.furniture.sshd import has_sshd


@dataclass
class Lab:
    """`env` is what a shell has after `. DIR/env`; `facts` is lab.json; `log` is what the command printed."""

    directory: Path
    log: Path
    process: subprocess.Popen
    env: Mapping[str, str]
    facts: Mapping[str, Any]

    @property
    def pool_admin_url(self) -> str:
        return str(self.facts["postgres"]["pool_admin_url"])

    @property
    def dedicated_url(self) -> str:
        return str(self.facts["postgres"]["dedicated_url"])


@contextlib.contextmanager
def launched(directory: Path, log: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen]:
    """The command, just started. If it still runs at the end it is ended."""
    needs("openssh" not in arguments or has_sshd(), "OpenSSH's server is not installed")
    with log.open("ab") as out:
        process = subprocess.Popen(
            [command("fluxplane"), "lab", "--dir", str(directory), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=clean_environment(log.parent, **environment),
            cwd=log.parent,
        )
    try:
        yield process
    finally:
        end(process)


@contextlib.contextmanager
def running_lab(directory: Path, *arguments: str, **environment: str) -> Iterator[Lab]:
    """A lab in *directory*, ready; stopped by SIGTERM, without a process left."""
    log = directory.with_name(directory.name + ".log")
    with launched(directory, log, *arguments, **environment) as process:
        wait_until_ready(directory, process, log)
        facts = json.loads((directory / "lab.json").read_text())
        yield Lab(directory, log, process, exported(directory / "env"), facts)
        below = list(descendants(process.pid))
        assert end(process) == 0, log.read_text()
        assert alive(below) == []
        assert "Traceback" not in log.read_text()


def wait_until_ready(directory: Path, process: subprocess.Popen, log: Path) -> None:
    ready = directory / "lab.json"
    wait_until(lambda: ready.exists() or process.poll() is not None, "lab.json", within_s=60)
    assert process.poll() is None, log.read_text()


def _session_lab(*arguments: str) -> Iterator[Lab]:
    with contextlib.ExitStack() as stack:
        with leaks.lasting():
            home = stack.enter_context(enterable_directory("flux-lab-"))
            lab = stack.enter_context(running_lab(home / "lab", *arguments))
        yield lab


@pytest.fixture(scope="session")
def session_embedded_lab() -> Iterator[Lab]:
    yield from _session_lab()


@pytest.fixture(scope="session")
def session_openssh_lab() -> Iterator[Lab]:
    yield from _session_lab("--ssh", "openssh")


@pytest.fixture(scope="session")
def session_contract_lab() -> Iterator[Lab]:
    yield from _session_lab("--contract-only")


@pytest.fixture
def contract_lab(session_contract_lab: Lab) -> Lab:
    """
    A lab whose control plane has none of our extensions.

    It cannot revoke: its roles end at their expiry, so that no test may ask for none to be left.
    """
    return session_contract_lab


@contextlib.contextmanager
def no_role_of_daemons_left(lab: Lab) -> Iterator[None]:
    """Daemons that still run at the end are stopped: that ends their roles."""
    with no_role_left(lab.pool_admin_url):
        yield
        stop_all()


@pytest.fixture
def lab(session_embedded_lab: Lab) -> Iterator[Lab]:
    with no_role_of_daemons_left(session_embedded_lab):
        yield session_embedded_lab


@pytest.fixture
def openssh_lab(session_openssh_lab: Lab) -> Iterator[Lab]:
    with no_role_of_daemons_left(session_openssh_lab):
        yield session_openssh_lab


@pytest.fixture(params=["lab", "openssh_lab"])
def each_lab(request: pytest.FixtureRequest) -> Lab:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Lab)
    return found
