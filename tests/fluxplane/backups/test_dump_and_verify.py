"""A backup is whole or not there, and is verified only if it restores to what was dumped."""

import asyncio
import contextlib
import os
import resource
import secrets
import stat
import sys
from pathlib import Path

import msgspec
import psycopg
import pytest

from fluxplane.backups import dump as dumping
from fluxplane.backups import programs, throwaway, verify
from fluxplane.backups.dump import Source, dump
from fluxplane.backups.programs import BackupFailed, Login
from fluxplane.backups.verify import Archive
from fluxplane.wire import Secret
from tests.furniture import awkward
from tests.furniture.postgres import PASSWORD, enterable_directory

SCHEMA = "t_0123456789ab_api"
POLICIES = """
CREATE SCHEMA IF NOT EXISTS auth;
CREATE OR REPLACE FUNCTION auth.uid() RETURNS text LANGUAGE sql STABLE AS $$ SELECT 'o1'::text $$;
CREATE POLICY own ON private_rows TO flux_policy_reader USING (owner = auth.uid());
"""


def login(server, database="postgres"):
    return Login("127.0.0.1", server.port, "postgres", Secret(PASSWORD), database)


@contextlib.contextmanager
def database(server):
    """A database of its own on *server*, with the awkward schema in it and a role that a policy names."""
    name = "db_" + secrets.token_hex(4)
    with psycopg.connect(server.url().reveal(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        if not admin.execute("SELECT 1 FROM pg_roles WHERE rolname = 'flux_policy_reader'").fetchone():
            admin.execute("CREATE ROLE flux_policy_reader NOLOGIN")
        try:
            with psycopg.connect(server.url(name).reveal(), autocommit=True) as connection:
                awkward.fill(connection, SCHEMA, policies=POLICIES)
                yield name, connection
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def place():
    with enterable_directory() as path:
        yield path


async def dumped(source, target, **more):
    return await dump(source, target, progress=more.pop("progress", lambda _: None), within_s=120)


async def verified(archive, place, **more):
    return await verify.verify(archive, place / "w", within_s=120, **more)


@pytest.mark.parametrize("schema", [None, SCHEMA], ids=["whole database", "tenant schema"])
async def test_a_backup_of_every_version_verifies(each_postgres, place, schema):
    with database(each_postgres) as (name, connection):
        if schema is None:
            with connection.transaction():
                connection.execute("SELECT lo_from_bytea(0, '\\x0102')")
        made = await dumped(Source(login(each_postgres, name), schema), place / "b.dump")
        held = await verified(Archive(place / "b.dump", made.manifest, schema), place)
    assert held.tables == made.manifest.tables
    assert made.manifest.tables[f"{SCHEMA}.people"] == 500
    assert made.manifest.large_objects == (1 if schema is None else 0)
    assert made.size == (place / "b.dump").stat().st_size
    assert stat.S_IMODE((place / "b.dump").stat().st_mode) == 0o600
    assert list(place.glob("b.dump*")) == [place / "b.dump"]
    assert list((place / "w").glob("verify-*")) == []


async def test_a_restore_of_the_backup_is_row_for_row_the_same(pg18, place):
    with database(pg18) as (name, connection), psycopg.connect(pg18.url().reveal(), autocommit=True) as admin:
        await dumped(Source(login(pg18, name)), place / "b.dump")
        admin.execute("CREATE DATABASE copied")
        try:
            async with programs.passfile(login(pg18, "copied")) as passfile:
                done = await programs.run(
                    [pg18.installation.program("pg_restore"), *login(pg18, "copied").arguments(), place / "b.dump"],
                    env=programs.environment(passfile),
                    within_s=60,
                )
            assert done.status == 0, done.said
            with psycopg.connect(pg18.url("copied").reveal()) as copy:
                assert awkward.fingerprint(connection, SCHEMA) == awkward.fingerprint(copy, SCHEMA)
        finally:
            admin.execute("DROP DATABASE copied WITH (FORCE)")


async def test_an_empty_tenant_verifies(pg18, place):
    with psycopg.connect(pg18.url().reveal(), autocommit=True) as admin:
        admin.execute("CREATE SCHEMA t_eeeeeeeeeeee_api")
        try:
            made = await dumped(Source(login(pg18), "t_eeeeeeeeeeee_api"), place / "b.dump")
            held = await verified(Archive(place / "b.dump", made.manifest, "t_eeeeeeeeeeee_api"), place)
        finally:
            admin.execute("DROP SCHEMA t_eeeeeeeeeeee_api")
    assert held.tables == {}


async def test_rows_that_come_during_the_dump_are_no_difference(pg18, place):
    with database(pg18) as (name, _):
        stop = asyncio.Event()

        def insert():
            with psycopg.connect(pg18.url(name).reveal(), autocommit=True) as writer:
                while not stop.is_set():
                    writer.execute(f"INSERT INTO {SCHEMA}.quick VALUES (0)")

        writing = asyncio.create_task(asyncio.to_thread(insert))
        try:
            made = await dumped(Source(login(pg18, name)), place / "b.dump")
        finally:
            stop.set()
            await writing
        held = await verified(Archive(place / "b.dump", made.manifest, None), place)
    assert held.tables == made.manifest.tables


async def test_a_backup_that_lacks_rows_is_not_verified(pg18, place):
    with database(pg18) as (name, _):
        made = await dumped(Source(login(pg18, name), SCHEMA), place / "b.dump")
    more = made.manifest.tables | {f"{SCHEMA}.people": 501, f"{SCHEMA}.gone": 0}
    told = msgspec.structs.replace(made.manifest, tables=more)
    with pytest.raises(BackupFailed, match=r"gone is missing; .*people has 500 rows instead of 501"):
        await verified(Archive(place / "b.dump", told, SCHEMA), place)


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "text"])
async def test_a_damaged_file_is_not_verified_and_leaves_nothing(pg18, place, harm):
    with database(pg18) as (name, _):
        made = await dumped(Source(login(pg18, name)), place / "b.dump")
    data = bytearray((place / "b.dump").read_bytes())
    middle = len(data) // 2
    damaged = {
        "cut": data[:middle],
        "flipped": data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 4096]) + data[middle + 4096 :],
        "empty": b"",
        "text": b"SELECT 1;\n" * 1000,
    }[harm]
    (place / "b.dump").write_bytes(damaged)
    with pytest.raises(BackupFailed):
        await verified(Archive(place / "b.dump", made.manifest, None), place)
    assert list((place / "w").glob("verify-*")) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"password": Secret("wrong")}, "password authentication failed"),
        ({"port": 1}, "cannot be reached"),
        ({"database": "no_such"}, "does not exist"),
    ],
)
async def test_a_dump_that_cannot_log_in_says_so_and_leaves_nothing(pg18, place, change, words):
    fields = {"host": "127.0.0.1", "port": pg18.port, "user": "postgres", "password": Secret(PASSWORD)} | change
    with pytest.raises(BackupFailed, match=words) as failure:
        await dumped(Source(Login(**fields)), place / "b.dump")
    assert PASSWORD not in str(failure.value)
    assert list(place.iterdir()) == []


async def test_a_schema_that_is_not_there_fails_and_leaves_nothing(pg18, place):
    with pytest.raises(BackupFailed, match="no matching schemas"):
        await dumped(Source(login(pg18), "t_nope_api"), place / "b.dump")
    assert list(place.iterdir()) == []


async def test_a_full_disk_fails_the_dump_and_leaves_nothing(pg18, place):
    with database(pg18) as (name, _):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, before[1]))
        try:
            with pytest.raises(BackupFailed, match="pg_dump failed"):
                await dumped(Source(login(pg18, name)), place / "b.dump")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(place.iterdir()) == []


async def test_a_verification_stops_before_the_disk_is_full(pg18, place):
    with database(pg18) as (name, _):
        made = await dumped(Source(login(pg18, name)), place / "b.dump")
    with pytest.raises(BackupFailed, match="nearly full"):
        await verified(
            Archive(place / "b.dump", made.manifest, None), place, limits=throwaway.Limits(reserve_bytes=2**60)
        )


async def test_a_cancelled_dump_leaves_no_file_no_process_and_no_session(pg18, place):
    with database(pg18) as (name, connection):
        begun = asyncio.Event()
        with psycopg.connect(pg18.url(name).reveal()) as blocker:
            blocker.execute(f"LOCK TABLE {SCHEMA}.people")
            running = asyncio.create_task(
                dump(Source(login(pg18, name)), place / "b.dump", progress=lambda _: begun.set(), within_s=60)
            )
            await begun.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        assert list(place.iterdir()) == []
        ask = "SELECT count(*) FROM pg_stat_activity WHERE application_name IN ('pg_dump', 'fluxplane backup')"
        async with asyncio.timeout(10):
            while connection.execute(ask).fetchone() != (0,):
                await asyncio.sleep(0.05)


async def test_a_dump_waits_for_no_lock_for_ever(pg18, place, monkeypatch):
    monkeypatch.setattr(dumping, "LOCK_WAIT_MS", 200)
    with database(pg18) as (name, _), psycopg.connect(pg18.url(name).reveal()) as blocker:
        blocker.execute(f"LOCK TABLE {SCHEMA}.people")
        with pytest.raises(BackupFailed, match="lock"):
            await dumped(Source(login(pg18, name)), place / "b.dump")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("kind", ["memory", "directory"])
async def test_a_passfile_is_private_right_and_gone_afterwards(pg18, kind, monkeypatch):
    if kind == "directory":
        monkeypatch.delattr(os, "memfd_create")
    one = Login("127.0.0.1", pg18.port, "postgres", Secret(PASSWORD))
    async with programs.passfile(one) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        done = await programs.run(
            [pg18.installation.program("psql"), *one.arguments(), "-w", "-c", "SELECT 1"],
            env=programs.environment(path),
            within_s=30,
        )
    assert done.status == 0, done.said
    assert not path.exists()


async def test_no_password_stands_on_a_command_line_or_in_an_environment(pg18, place):
    seen = []

    def look(_):
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                seen.append((path / "cmdline").read_bytes() + (path / "environ").read_bytes())

    with database(pg18) as (name, _):
        await dumped(Source(login(pg18, name)), place / "b.dump", progress=look)
    assert any(b"pg_dump" in one for one in seen)
    assert not any(PASSWORD.encode() in one for one in seen)


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="a user of its own needs root")
async def test_the_throwaway_server_is_alone(place):
    tools = programs.fitting(18, await programs.installations())
    async with throwaway.throwaway(tools, place / "w") as server:
        assert server.superuser
        owner = server.home.stat().st_uid
        assert owner in throwaway.OWN_UIDS
        assert stat.S_IMODE(server.home.stat().st_mode) == 0o700
        with psycopg.connect(
            host=str(server.home), port=5432, user="postgres", password=server.password.reveal(), dbname="postgres"
        ) as link:
            link.execute("CREATE TABLE said (line text)")
            look = "id -u; id -G; cat /proc/net/dev | wc -l; ls /root 2>&1 | tail -1; grep processes /proc/self/limits"
            link.execute(f"COPY said FROM PROGRAM '{look}'")
            told = [row[0] for row in link.execute("SELECT line FROM said").fetchall()]
    assert told[:2] == [str(owner), str(owner)]
    assert told[2] == "3"  # two lines of heading, and a loopback that is down
    assert "Permission denied" in told[3]
    assert told[4].split()[2] == "64"
    assert not server.home.exists()


KILLED = """
import asyncio, sys
from pathlib import Path
from fluxplane.backups import programs, throwaway

async def main():
    tools = programs.fitting(18, await programs.installations())
    async with throwaway.throwaway(tools, Path(sys.argv[1])) as server:
        print(server.home, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_killed_plane_leaves_no_server_and_the_next_one_sweeps(place):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(place / "w"), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        home = Path((await process.stdout.readline()).decode().strip())
        pid = int((home / "data" / "postmaster.pid").read_text().splitlines()[0])
        assert throwaway.sweep(place / "w") == []
        process.kill()
        await process.wait()
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            await asyncio.sleep(0.05)
    assert throwaway.sweep(place / "w") == [home.name]
    assert not home.exists()
    process._transport.close()


async def test_a_program_that_is_too_old_names_both_versions():
    known = await programs.installations()
    with pytest.raises(BackupFailed, match=r"PostgreSQL 99.*newest is 18"):
        programs.fitting(99, known)
