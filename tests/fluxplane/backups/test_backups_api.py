"""Backups over HTTP, as the contract has them, and what crashes, damage and time do to them."""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import uuid
from pathlib import Path

import aiohttp
import psycopg
import pytest

from fluxplane import catalogue, doctor, registry
from fluxplane.backups import handlers, store
from fluxplane.settings import BackupSettings
from tests.fluxplane.backups.conftest import V1, V2, base, filled, made, new_plane, newest, replica
from tests.fluxplane.conftest import USER, Answer, fill, furnish, schema_of, serving, settings_for, url
from tests.furniture.needs import needs_program
from tests.furniture.postgres import PASSWORD, enterable_directory


@pytest.mark.parametrize("hash_", [V1, V2])
async def test_create_verify_list_and_download(settings, pool18, hash_):
    settings, token = settings
    schema = await filled(settings, pool18)
    async with serving(settings, token) as plane:
        backup = await made(plane, hash_)
        assert (backup["format"], backup["status"]) == ("pg_custom", "complete")
        assert backup["kind"] == ("project_db" if hash_ == V1 else "tenant_export")
        assert backup["artifactValidationStatus"] == "artifact_valid"
        assert backup["restoreVerificationStatus"] == "pending"
        path = Path(backup["primaryArtifactAbsolutePath"])
        assert path == settings.backups.directory / backup["primaryArtifactRelativePath"]
        assert backup["sizeBytes"] == path.stat().st_size
        assert backup["checksumSha256"] == hashlib.sha256(path.read_bytes()).hexdigest()

        verified = await plane.post(f"{base(hash_)}/{backup['id']}/verify")
        assert (verified.status, verified.body) == (
            200,
            {"ok": True, "backupId": backup["id"], "restoreVerificationStatus": "restore_verified"},
        )
        listed = (await plane.get(base(hash_))).body
        assert listed["backups"][0]["restoreVerificationStatus"] == "restore_verified"
        assert listed["platformMinimumBackupFreshness"]["freshness"]["tier"] == "fresh"
        assert listed["backupVolumeAbsoluteRoot"] == str(settings.backups.directory)
        assert not any(value is None for value in listed["backups"][0].values())

        async with plane.http.get(
            f"{plane.base}{base(hash_)}/{backup['id']}/download",
            headers={"Authorization": f"Bearer {token.reveal()}"},
        ) as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "application/octet-stream"
            assert response.headers["Content-Disposition"] == f'attachment; filename="{hash_}-{backup["id"]}.dump"'
            assert hashlib.sha256(await response.read()).hexdigest() == backup["checksumSha256"]
        kinds = [one["kind"] for one in (await plane.get(f"/api/cli/v1/projects/{hash_}/activity")).body["events"]]
        assert {"backup.created", "backup.verified"} <= set(kinds)
        audited = (await plane.get(f"/api/cli/v1/audit?hash={hash_}")).body["events"]
        assert [(one["event"], one["outcome"]) for one in reversed(audited)] == [
            ("backup_created", "intent"),
            ("backup_created", "ok"),
            ("backup_verified", "intent"),
            ("backup_verified", "ok"),
            ("backup_downloaded", "ok"),
        ]
    if hash_ == V2:
        contents = subprocess.run(["pg_restore", "-f", "-", path], capture_output=True, text=True, check=False)
        held = pg_restore(pool18, path) if contents.returncode else contents.stdout
        assert f"COPY {schema}.secrets" in held
        assert "GRANT" not in held


def pg_restore(server, path, *options):
    done = subprocess.run(
        [server.installation.program("pg_restore"), "-f", "-", *options, path],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


async def test_a_tenants_export_holds_rows_behind_policies_and_sequences_and_no_neighbour(settings, pool18):
    settings, token = settings
    schema = await filled(settings, pool18)
    fill(pool18, await schema_of(settings, "0a1b2c3"), "the neighbour's")
    async with serving(settings, token) as plane:
        backup = await made(plane, V2)
    held = pg_restore(pool18, backup["primaryArtifactAbsolutePath"])
    assert re.search(rf"COPY {schema}\.secrets \(id\) FROM stdin;\n1\n2\n3\n4\n5\n6\n7\n", held)
    assert f"setval('{schema}.things_id_seq', 2, true)" in held
    assert "neighbour" not in held
    assert (await schema_of(settings, "0a1b2c3")) not in held


async def test_every_pool_has_a_login_that_reads_whole_tenants_and_changes_nothing(each_postgres):
    with enterable_directory() as place:
        made_for = settings_for(each_postgres, backups=BackupSettings(directory=place / "backups"))
        name = psycopg.conninfo.conninfo_to_dict(made_for.pool_url.reveal())["user"] + "_backup"
        login = url(each_postgres, name, "backup-pw")
        made_for = dataclasses.replace(made_for, pool_backup_url=login)
        token = await furnish(made_for)
        schema = await filled(made_for, each_postgres)
        async with serving(made_for, token) as plane:
            backup = await made(plane, V2)
            assert (await plane.post(f"{base(V2)}/{backup['id']}/verify")).status == 200
        with psycopg.connect(login.reveal(), autocommit=True) as link:
            assert link.execute(f"SELECT count(*) FROM {schema}.secrets").fetchone() == (7,)
            for forbidden in (f"DELETE FROM {schema}.things", f"CREATE TABLE {schema}.mine ()", "CREATE ROLE mine"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    link.execute(forbidden)


async def test_an_empty_tenant_is_verified(settings):
    settings, token = settings
    async with serving(settings, token) as plane:
        backup = await made(plane, "0a1b2c3")
        assert (await plane.post(f"{base('0a1b2c3')}/{backup['id']}/verify")).status == 200


async def test_a_second_verification_restores_again(settings):
    settings, token = settings
    async with serving(settings, token) as plane:
        backup = await made(plane, V2)
        for _ in range(2):
            assert (await plane.post(f"{base(V2)}/{backup['id']}/verify")).status == 200
        path = Path(backup["primaryArtifactAbsolutePath"])
        stamp = path.stat()
        data = bytearray(path.read_bytes())
        data[-1] ^= 0xFF
        path.write_bytes(data)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        answer = await plane.post(f"{base(V2)}/{backup['id']}/verify")
        assert answer.status == 500
        assert "checksum" in answer.body["error"]
        assert (await newest(plane, V2))["restoreVerificationStatus"] == "skipped"


@pytest.mark.parametrize("harm", ["removed", "shorter", "changed"])
async def test_a_list_tells_files_that_are_gone_or_changed(settings, harm):
    settings, token = settings
    async with serving(settings, token) as plane:
        backup = await made(plane, V2)
        path = Path(backup["primaryArtifactAbsolutePath"])
        data = path.read_bytes()
        {
            "removed": path.unlink,
            "shorter": lambda: path.write_bytes(data[:-1]),
            "changed": lambda: path.write_bytes(bytes(reversed(data))),
        }[harm]()
        told = await newest(plane, V2)
        assert told["artifactValidationStatus"] == "artifact_invalid"
        assert told["restoreVerificationStatus"] == "skipped"
        assert told["localArtifactStatus"] == ("missing" if harm == "removed" else "present")
        if harm == "removed":
            assert (await plane.get(f"{base(V2)}/{backup['id']}/download")).status == 404
            assert (await plane.post(f"{base(V2)}/{backup['id']}/verify")).status == 404


async def test_a_list_reads_no_file_twice(settings):
    settings, token = settings
    async with serving(settings, token) as plane:
        backup = await made(plane, V2)
        path = Path(backup["primaryArtifactAbsolutePath"])
        os.utime(path, ns=(1, path.stat().st_mtime_ns))
        await plane.get(base(V2))
        assert path.stat().st_atime_ns == 1


NOBODYS = uuid.UUID("5d0c4a3e-8d55-4e0f-9a6b-1f2e3d4c5b6a")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", base("zzz"), 400),
        ("GET", base("0000000"), 404),
        ("POST", base("0000000"), 404),
        ("POST", f"{base(V2)}/nonsense/verify", 404),
        ("POST", f"{base(V2)}/{NOBODYS}/verify", 404),
        ("GET", f"{base(V2)}/{NOBODYS}/download", 404),
        ("GET", f"{base(V2)}/%2e%2e%2fetc%2fpasswd/download", 404),
        ("GET", f"/api/cli/v1/projects/{V2}/dump", 400),
        ("GET", f"/api/cli/v1/projects/{V1}/dump?schemaOnly=1&dataOnly=1", 400),
        ("POST", f"/api/cli/v1/projects/{V1}/restores/{NOBODYS}", 400),
    ],
)
async def test_what_is_not_there_is_refused_in_the_contracts_shape(settings, method, path, status):
    settings, token = settings
    async with serving(settings, token) as plane:
        answer = await plane.ask(method, path)
        assert (answer.status, type(answer.body["error"])) == (status, str)
        stranger = dataclasses.replace(plane, token=None)
        assert (await stranger.ask(method, path)).body == {"error": "Unauthorized"}


async def test_a_second_create_is_refused_while_one_runs_and_the_progress_tells_its_end(settings, pg18):
    settings, token = settings
    async with serving(settings, token) as plane:
        with psycopg.connect(pg18.url().reveal()) as blocker:
            blocker.execute("LOCK TABLE shop.people")
            begun = await plane.post(base(V1) + "?wait=0")
            assert (begun.status, begun.body["backup"]["status"]) == (202, "running")
            again = await plane.post(base(V1))
            assert (again.status, again.body["error"]) == (409, "A backup is already running for this project.")
            assert (await plane.post(f"{base(V1)}/{begun.body['backup']['id']}/verify")).status == 409
        lines = await progress(plane, V1, begun.body["backup"]["id"])
        assert [line["done"] for line in lines][-1] is True
        assert lines[-1]["backup"]["status"] == "complete"
        asked = await plane.post(f"{base(V1)}/{begun.body['backup']['id']}/verify?wait=0")
        assert (asked.status, asked.body["restoreVerificationStatus"]) == (202, "pending")
        lines = await progress(plane, V1, begun.body["backup"]["id"])
        assert lines[-1]["backup"]["restoreVerificationStatus"] == "restore_verified"


async def progress(plane, hash_, backup_id) -> list[dict]:
    headers = {"Authorization": f"Bearer {plane.token.reveal()}"}
    async with plane.http.get(f"{plane.base}{base(hash_)}/{backup_id}/progress", headers=headers) as response:
        assert response.content_type == "application/x-ndjson"
        return [json.loads(line) async for line in response.content]


async def test_a_create_whose_caller_leaves_goes_on(settings, pg18):
    settings, token = settings
    async with serving(settings, token) as plane:
        with psycopg.connect(pg18.url().reveal()) as blocker:
            blocker.execute("LOCK TABLE shop.people")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await plane.post(base(V1))
            running = await newest(plane, V1)
            assert running["status"] == "running"
        assert (await progress(plane, V1, running["id"]))[-1]["backup"]["status"] == "complete"


async def test_a_failed_create_is_500_and_recorded_and_the_next_one_works(settings, pg18):
    settings, token = settings
    async with serving(settings, token) as plane:
        with psycopg.connect(pg18.url().reveal(), autocommit=True) as admin:
            admin.execute("ALTER USER postgres PASSWORD 'changed'")
            try:
                answer = await plane.post(base(V1))
            finally:
                admin.execute(psycopg.sql.SQL("ALTER USER postgres PASSWORD {}").format(PASSWORD))
        assert answer.status == 500
        assert "password authentication failed" in answer.body["error"]
        assert PASSWORD not in json.dumps(answer.body)
        assert (await newest(plane, V1))["status"] == "failed"
        assert list(settings.backups.directory.glob("*/*.dump*")) == []
        assert (await made(plane, V1))["status"] == "complete"


@pytest.mark.parametrize("named", [True, False], ids=["by its host", "by the container's address"])
async def test_a_v1_project_in_a_container_is_backed_up_as_any_other(settings, pg18, docker_engine, monkeypatch, named):
    """The password is the container's, which docker tells; so is the address, where no name resolves to it."""
    settings, token = settings
    needs_program("docker")
    monkeypatch.setenv("DOCKER_HOST", docker_engine.url)
    docker_engine.PASSWORD = PASSWORD
    where = {"internal_host": "127.0.0.1"} if named else {}
    contained = registry.NewProject(
        user=USER, slug="acme", mode="v1_dedicated", hash="abcdef1", internal_port=pg18.port, **where
    )
    async with catalogue.connect(settings) as catalog:
        await registry.create_project(catalog, settings, contained)
    async with serving(settings, token) as plane:
        missing = await plane.post(base("abcdef1"))
        assert (missing.status, "flux-abcdef1-acme-db is missing, stopped" in missing.body["error"]) == (500, True)
        docker_engine.containers["flux-abcdef1-acme-db"] = {"flux-abcdef1-acme-net": "127.0.0.1"}
        backup = await made(plane, "abcdef1")
        assert (backup["kind"], backup["status"]) == ("project_db", "complete")
        assert "shop.people" in pg_restore(pg18, backup["primaryArtifactAbsolutePath"])
        assert (await plane.post(f"{base('abcdef1')}/{backup['id']}/verify")).status == 200
        headers = {"Authorization": f"Bearer {token.reveal()}"}
        path = f"{plane.base}/api/cli/v1/projects/abcdef1/dump?schemaOnly=1"
        async with plane.http.get(path, headers=headers) as response:
            assert "CREATE TABLE shop.people" in await response.text()
        docker_engine.PASSWORD = "changed in the database since"
        answer = await plane.post(base("abcdef1"))
        assert (answer.status, "password authentication failed" in answer.body["error"]) == (500, True)
        monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
        answer = await plane.post(base("abcdef1"))
        assert (answer.status, "Docker cannot be reached" in answer.body["error"]) == (500, True)


async def test_a_plane_without_a_backup_login_says_so(settings):
    settings, token = settings
    async with serving(dataclasses.replace(settings, pool_backup_url=None), token) as plane:
        answer = await plane.post(base(V2))
        assert answer.status == 500
        assert "FLUXPLANE_POOL_BACKUP_URL" in answer.body["error"]


async def test_stopping_the_plane_ends_the_run_marks_it_failed_and_leaves_nothing(settings, pg18):
    settings, token = settings
    with psycopg.connect(pg18.url().reveal()) as blocker:
        blocker.execute("LOCK TABLE shop.people")
        async with serving(settings, token) as plane:
            assert (await plane.post(base(V1) + "?wait=0")).status == 202
            await dumping(pg18)
    async with serving(settings, token) as plane:
        told = await newest(plane, V1)
        assert told["status"] == "failed"
        assert "stopped" in told["error"]
        assert (await made(plane, V1))["status"] == "complete"
    assert len(list(settings.backups.directory.glob("*/*.dump*"))) == 1


async def dumping(server):
    """Wait until pg_dump is at work."""
    async with asyncio.timeout(20):
        while not sessions(server):
            await asyncio.sleep(0.02)


def sessions(server):
    with psycopg.connect(server.url().reveal()) as link:
        return link.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'pg_dump'").fetchall()


@pytest.mark.parametrize("at", ["dump", "verify"])
async def test_killing_the_plane_leaves_no_lock_no_file_no_process(settings, pg18, monkeypatch, at):
    settings, token = settings
    monkeypatch.setattr(store, "DEAD_AFTER_S", 2.0)
    async with serving(settings, token) as survivor:
        backup = await made(survivor, V1)
        async with replica(settings) as (process, address):
            victim = dataclasses.replace(survivor, base=address)
            with psycopg.connect(pg18.url().reveal()) as blocker:
                if at == "dump":
                    blocker.execute("LOCK TABLE shop.people")
                    assert (await victim.post(base(V1) + "?wait=0")).status == 202
                    await dumping(pg18)
                else:
                    assert (await victim.post(f"{base(V1)}/{backup['id']}/verify?wait=0")).status == 202
                    async with asyncio.timeout(20):
                        while not (homes := list((settings.backups.directory / ".work").glob("verify-*/data/base"))):
                            await asyncio.sleep(0.01)
                process.send_signal(signal.SIGKILL)
                await process.wait()
                async with asyncio.timeout(10):
                    while children(settings.backups.directory):
                        await asyncio.sleep(0.05)
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            if at == "dump":
                while sessions(pg18):
                    await asyncio.sleep(0.05)
                while (await newest(survivor, V1))["status"] != "failed":
                    await asyncio.sleep(0.1)
                assert (await made(survivor, V1))["status"] == "complete"
            else:
                while (await survivor.post(f"{base(V1)}/{backup['id']}/verify")).status == 409:
                    await asyncio.sleep(0.2)
                assert (await newest(survivor, V1))["restoreVerificationStatus"] == "restore_verified"
                assert homes
    async with serving(settings, token):  # whoever starts next sweeps
        async with asyncio.timeout(10):
            while list((settings.backups.directory / ".work").glob("verify-*")):
                await asyncio.sleep(0.05)
    assert list(settings.backups.directory.glob("*/*.partial")) == []


def children(directory):
    """Processes with this directory on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(directory).encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


async def test_retention_removes_rows_and_files_of_old_verified_backups_only(settings):
    settings, token = settings
    bounds = dataclasses.replace(settings.backups, retention_count=1, retention_days=1)
    settings = dataclasses.replace(settings, backups=bounds)
    async with serving(settings, token) as plane:
        old, unverified, new = [await made(plane, V2) for _ in range(3)]
    async with catalogue.connect(settings) as catalog:
        await catalog.db.execute(
            "UPDATE backups SET restore = 'restore_verified', restore_at = created_at, created_at = created_at"
            " - CASE WHEN id = $1 THEN interval '3 days' ELSE interval '0' END WHERE id IN ($1, $2)",
            uuid.UUID(old["id"]),
            uuid.UUID(new["id"]),
        )
    async with serving(settings, token) as plane:
        async with asyncio.timeout(10):
            while len(listed := (await plane.get(base(V2))).body["backups"]) == 3:
                await asyncio.sleep(0.05)
    assert {one["id"] for one in listed} == {unverified["id"], new["id"]}
    assert not Path(old["primaryArtifactAbsolutePath"]).exists()
    assert len(list(settings.backups.directory.glob("*/*.dump"))) == 2


async def test_the_schedule_backs_up_and_verifies_what_is_due(settings):
    settings, token = settings
    settings = dataclasses.replace(settings, backups=dataclasses.replace(settings.backups, scheduled=True))
    async with serving(settings, token) as plane:
        async with asyncio.timeout(60):
            for hash_ in (V1, V2, "0a1b2c3"):
                while not (
                    (found := (await plane.get(base(hash_))).body["backups"])
                    and found[0]["restoreVerificationStatus"] == "restore_verified"
                ):
                    await asyncio.sleep(0.2)


async def test_the_restore_gate_is_the_planes_too(settings):
    settings, token = settings
    restores = f"/api/cli/v1/projects/{V1}/restores"
    yes = {"acknowledged": True}
    async with serving(settings, token) as plane:

        async def ask(**body) -> Answer:
            return await plane.post(restores, json=body)

        assert (await ask()).body["code"] == "not_acknowledged"
        assert "overwrite" in (await ask()).body["error"]
        blocked = await ask(**yes)
        assert (blocked.status, blocked.body["code"]) == (412, "no_backups")
        assert "flux backup create && flux backup verify --latest" in blocked.body["error"]
        assert "--skip-backup-check" in blocked.body["error"]
        backup = await made(plane, V1)
        assert (await ask(**yes)).body["code"] == "not_restore_verified"
        skipped = await ask(**yes, skipBackupCheck=True, reason="a drill")
        assert (skipped.status, skipped.body["ground"]) == (200, "skipped")
        await plane.post(f"{base(V1)}/{backup['id']}/verify")
        allowed = await ask(**yes)
        assert (allowed.status, allowed.body["ground"]) == (200, "verified")
        ended = await plane.post(f"{restores}/{allowed.body['restoreId']}", json={"outcome": "ok"})
        assert (ended.status, ended.body) == (200, {"ok": True})
        again = await plane.post(f"{restores}/{allowed.body['restoreId']}", json={"outcome": "failed"})
        assert again.status == 404
        async with catalogue.connect(settings) as catalog:
            await catalog.db.execute("UPDATE backups SET created_at = created_at - interval '25 hours'")
        assert (await ask(**yes)).body["code"] == "too_old"
        patient = dataclasses.replace(settings.backups, restore_max_age_s=26 * 3600)
        async with serving(dataclasses.replace(settings, backups=patient), token) as other:
            assert (await other.post(restores, json=yes)).status == 200
        pooled = await plane.post(f"/api/cli/v1/projects/{V2}/restores", json=yes)
        assert (pooled.status, pooled.body["code"]) == (412, "pooled")
        assert "not supported" in pooled.body["error"]
        events = (await plane.get(f"/api/cli/v1/audit?hash={V1}")).body["events"]
    told = [(one["event"], one["outcome"]) for one in events if "restore" in one["event"]]
    assert told.count(("database_restored", "refused")) == 5
    assert told.count(("restore_check_skipped", "ok")) == 1
    assert told.count(("restore_check_passed", "ok")) == 2
    assert told.count(("database_restored", "ok")) == 1
    assert [one["reason"] for one in events if one["event"] == "restore_check_skipped"] == ["a drill"]


async def test_a_project_is_deleted_only_with_a_verified_backup(settings, pool18, pg18):
    own, token = await new_plane(pool18, pg18)
    settings = dataclasses.replace(own, backups=settings[0].backups)
    async with serving(settings, token) as plane:
        path = f"/api/cli/v1/projects/{V2}"
        assert (await plane.ask("DELETE", path)).body["code"] == "no_backups"
        backup = await made(plane, V2)
        assert (await plane.ask("DELETE", path)).status == 412
        await plane.post(f"{base(V2)}/{backup['id']}/verify")
        assert (await plane.ask("DELETE", path)).status == 200
    assert Path(backup["primaryArtifactAbsolutePath"]).exists()


@pytest.mark.parametrize(
    ("query", "has", "lacks"),
    [
        ("", ["CREATE TABLE shop.people", "COPY shop.people"], ["DROP TABLE"]),
        ("?schemaOnly=1", ["CREATE TABLE shop.people"], ["COPY shop.people"]),
        ("?dataOnly=1", ["COPY shop.people"], ["CREATE TABLE shop.people"]),
        ("?clean=1", ["DROP TABLE IF EXISTS shop.people"], []),
        ("?publicOnly=1", ["PostgreSQL database dump complete"], ["shop.people"]),
    ],
)
async def test_flux_dump_streams_plain_sql(settings, query, has, lacks):
    settings, token = settings
    async with serving(settings, token) as plane:
        headers = {"Authorization": f"Bearer {token.reveal()}"}
        async with plane.http.get(f"{plane.base}/api/cli/v1/projects/{V1}/dump{query}", headers=headers) as response:
            assert (response.status, response.content_type) == (200, "application/sql")
            assert re.search(r'filename="yeastcoast-\d{8}T\d{6}Z\.sql"', response.headers["Content-Disposition"])
            text = (await response.read()).decode()
    assert all(words in text for words in has)
    assert not any(words in text for words in lacks)


async def test_a_plain_dump_that_breaks_off_is_seen_to(settings, pg18):
    """No reader may take the half for the whole: the connection is torn."""
    settings, token = settings
    with psycopg.connect(pg18.url().reveal(), autocommit=True) as link:
        link.execute("CREATE TABLE shop.big AS SELECT repeat(md5(n::text), 200) FROM generate_series(1, 20000) n")
    async with serving(settings, token) as plane:
        headers = {"Authorization": f"Bearer {token.reveal()}"}
        async with plane.http.get(f"{plane.base}/api/cli/v1/projects/{V1}/dump", headers=headers) as response:
            assert response.status == 200
            terminate(pg18, sessions(pg18))
            with pytest.raises(aiohttp.ClientError):
                await response.read()


def terminate(server, pids):
    assert pids
    with psycopg.connect(server.url().reveal(), autocommit=True) as admin:
        for (pid,) in pids:
            admin.execute("SELECT pg_terminate_backend(%s)", [pid])


async def test_a_size_beyond_32_bits_is_told(settings):
    settings, token = settings
    async with serving(settings, token) as plane:
        backup = await made(plane, V2)
        path = Path(backup["primaryArtifactAbsolutePath"])
        os.truncate(path, 3 * 2**31)  # sparse: it takes no room
        stamp = path.stat()
        async with catalogue.connect(settings) as catalog:
            await catalog.db.execute(
                "UPDATE backups SET size_bytes = $2, progress_bytes = $2, stamp = $3 WHERE id = $1",
                uuid.UUID(backup["id"]),
                stamp.st_size,
                f"{stamp.st_size}:{stamp.st_mtime_ns}:{stamp.st_ino}",
            )
        assert (await newest(plane, V2))["sizeBytes"] == 3 * 2**31
        headers = {"Authorization": f"Bearer {token.reveal()}", "Range": f"bytes={3 * 2**31 - 5}-"}
        async with plane.http.get(f"{plane.base}{base(V2)}/{backup['id']}/download", headers=headers) as response:
            assert (response.status, await response.read()) == (206, bytes(5))


async def test_downloads_resume(settings):
    settings, token = settings
    async with serving(settings, token) as plane:
        backup = await made(plane, V1)
        whole = Path(backup["primaryArtifactAbsolutePath"]).read_bytes()
        headers = {"Authorization": f"Bearer {token.reveal()}", "Range": f"bytes={len(whole) // 2}-"}
        path = f"{plane.base}{base(V1)}/{backup['id']}/download"
        async with plane.http.get(path, headers=headers) as response:
            assert response.status == 206
            assert await response.read() == whole[len(whole) // 2 :]
        async with plane.http.get(path, headers=headers | {"Range": f"bytes={len(whole)}-"}) as response:
            assert response.status == 416


async def test_the_doctor_says_what_backups_lack(settings, pool18):
    settings, token = settings

    async def verdicts(**changes):
        found = await doctor.examine(dataclasses.replace(settings, **changes))
        return {one.name: (one.verdict, one.message) for one in found}

    told = await verdicts()
    assert told["backup programs"] == ("ok", "PostgreSQL 18, 16, 15")
    assert told["backup login"][0] == "ok"
    assert told["backup directory"][0] == "ok"
    assert told["backups"][0] == "warn"
    assert f"yeastcoast {V1}" in told["backups"][1]
    async with serving(settings, token) as plane:
        for hash_ in (V1, V2, "0a1b2c3"):
            await made(plane, hash_)
    async with catalogue.connect(settings) as catalog:
        await catalog.db.execute("UPDATE backups SET restore = 'restore_verified', restore_at = now()")
    assert (await verdicts())["backups"][0] == "ok"
    assert (await verdicts(pool_backup_url=None))["backup login"][0] == "warn"
    assert (await verdicts(pool_backup_url=settings.pool_url))["backup login"][0] == "fail"
    assert (await verdicts(pool_backup_url=pool18.url()))["backup login"][0] == "fail"
    nowhere = dataclasses.replace(settings.backups, directory=Path("/proc/no/such"))
    assert (await verdicts(backups=nowhere))["backup directory"][0] == "fail"


async def test_a_contract_only_plane_has_no_extensions(settings):
    settings, token = settings
    async with serving(dataclasses.replace(settings, contract_only=True), token) as plane:
        assert (await plane.get(base(V1))).status == 200
        assert (await plane.post(f"/api/cli/v1/projects/{V1}/restores")).status == 404


def test_every_route_is_the_contracts_or_named_an_extension():
    contract = {(method, path) for method, path, _, _ in handlers.routes(contract_only=True)}
    everything = {(method, path) for method, path, _, _ in handlers.routes(contract_only=False)}
    assert len(contract) == 5
    assert len(everything - contract) == 3
