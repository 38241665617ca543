"""
Real Postgres servers, one of each kind for the whole session: 18 and 16 (embedded), 15 (the distribution's).

They keep nothing safe (`fsync=off`): only tests may do that. `postgres_url(server)` is a superuser's.
"""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from fluxplane import binaries
from fluxplane.lab.postgres import Server
from fluxplane.wire import Secret
from tests.furniture import leaks
from tests.furniture.needs import needs

CARELESS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
PASSWORD = "a superuser's password: /@%?#"


@contextlib.contextmanager
def enterable_directory(prefix: str = "flux-test-") -> Iterator[Path]:
    """A temporary directory that other users may enter but not list (Postgres runs as one of them for root)."""
    path = Path(tempfile.mkdtemp(prefix=prefix))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def running(installation: binaries.Installation, **settings: str) -> Iterator[Server]:
    """A new, empty, running server of *installation*; gone with its data at the end."""
    who = binaries.runner()
    with enterable_directory("flux-test-pg-") as home:
        usable = binaries.reachable(installation, who, home / "bin")
        with Server(home / "cluster", usable, who, Secret(PASSWORD), CARELESS | settings) as server:
            yield server


def installation(major: int) -> binaries.Installation:
    """PostgreSQL *major*, of the package or of the system; else the test is skipped."""
    found = binaries.embedded(major) or next((one for one in binaries.system() if one.major == major), None)
    needs(found, f"PostgreSQL {major} is not installed")
    assert found is not None
    return found


def _session_server(major: int) -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        with leaks.lasting():
            server = stack.enter_context(running(installation(major)))
        yield server


@pytest.fixture(scope="session")
def pg18() -> Iterator[Server]:
    """PostgreSQL 18 for a v1 project: one tenant's whole server."""
    yield from _session_server(18)


@pytest.fixture(scope="session")
def pool18() -> Iterator[Server]:
    """PostgreSQL 18 for v2 projects. `pool prepare` may have closed it: whoever mints by hand takes `open18`."""
    yield from _session_server(18)


@pytest.fixture(scope="session")
def open18() -> Iterator[Server]:
    """PostgreSQL 18 that nobody ever prepared: PUBLIC may still do what a new cluster lets it."""
    yield from _session_server(18)


@pytest.fixture(scope="session")
def pg16() -> Iterator[Server]:
    yield from _session_server(16)


@pytest.fixture(scope="session")
def pg15() -> Iterator[Server]:
    yield from _session_server(15)


@pytest.fixture(scope="session", params=["pool18", "pg16", "pg15"])
def each_postgres(request: pytest.FixtureRequest) -> Server:
    """A test that takes this runs once on every supported major version."""
    server = request.getfixturevalue(request.param)
    assert isinstance(server, Server)
    return server


@contextlib.contextmanager
def asking_md5(server: Server) -> Iterator[None]:
    """As old clusters are: md5 for everybody whose password is stored so, and stored so it is from now on."""
    hba = server.data / "pg_hba.conf"
    before = hba.read_text()
    try:
        hba.write_text(before.replace("scram-sha-256", "md5"))
        _set_encryption(server, "md5")
        yield
    finally:
        hba.write_text(before)
        _set_encryption(server, "scram-sha-256")


def _set_encryption(server: Server, method: str) -> None:
    """Return once new sessions have it, and with it pg_hba.conf as it is now."""
    url = server.url().reveal()
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER SYSTEM SET password_encryption = {}").format(sql.Literal(method)))
        admin.execute("SELECT pg_reload_conf()")
    give_up_at = time.monotonic() + 10
    while True:
        with psycopg.connect(url) as other:
            if other.execute("SHOW password_encryption").fetchone() == (method,):
                return
        assert time.monotonic() < give_up_at, f"the server does not take {method}"
        time.sleep(0.02)


def temporary_roles(admin_url: str) -> set[str]:
    with psycopg.connect(admin_url, autocommit=True) as connection:
        rows = connection.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'flux\\_temp\\_%'").fetchall()
    return {str(row[0]) for row in rows}


@contextlib.contextmanager
def no_role_left(admin_url: str, *, within_s: float = 10) -> Iterator[None]:
    """Every temporary role that the block began is ended, at the latest *within_s* after it."""
    before = temporary_roles(admin_url)
    yield
    give_up_at = time.monotonic() + within_s
    while left := temporary_roles(admin_url) - before:
        assert time.monotonic() < give_up_at, f"temporary roles left: {left}"
        time.sleep(0.05)
