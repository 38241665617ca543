"""
The restore gate end to end: every state of the newest backup with every flag, through the installed command.

Once against our control plane, which decides itself, and once against one that has only the contract's routes, where
the client does. Allowed means here: it goes on, to an SSH host that nobody named.
"""

import asyncio
import subprocess
from pathlib import Path

import pytest

from fluxplane import catalogue, registry
from fluxplane.settings import BackupSettings
from tests.fluxplane.conftest import USER, furnish, serving, settings_for
from tests.furniture.daemon import Daemon
from tests.furniture.postgres import PASSWORD, Server, enterable_directory

pytestmark = pytest.mark.journey

V1, V2 = "ffca33f", "5774112"
ARTIFACT = "artifact = 'artifact_valid', stamp = NULL"
GOOD = f"status = 'complete', {ARTIFACT}, restore = 'restore_verified'"
STATES = {
    "none": None,
    "running": "status = 'running'",
    "failed": "status = 'failed'",
    "unchecked": "status = 'complete'",
    "unverified": f"status = 'complete', {ARTIFACT}",
    "restore failed": f"status = 'complete', {ARTIFACT}, restore = 'restore_failed'",
    "verified but stale": f"{GOOD}, created_at = now() - interval '25 h'",
    "verified": GOOD,
}
ALLOWED = {"verified"}
NO_SSH_HOST, REFUSED = 2, 11


@pytest.fixture
def archive(pg18: Server, daemon: Daemon) -> Path:
    path = daemon.home / "some.dump"
    subprocess.run(
        [
            pg18.installation.program("pg_dump"),
            "-Fc",
            "-h",
            "127.0.0.1",
            "-p",
            str(pg18.port),
            "-U",
            "postgres",
            "-f",
            path,
        ],
        env={"PGPASSWORD": PASSWORD},
        check=True,
    )
    return path


@pytest.mark.parametrize("contract_only", [False, True], ids=["our plane", "the contract's"])
async def test_every_state_with_and_without_the_check(pool18, pg18, daemon, archive, contract_only):
    with enterable_directory() as place:
        directory = place / "backups"
        settings = settings_for(
            pool18, contract_only=contract_only, ssh_host="", backups=BackupSettings(directory=directory)
        )
        token = await furnish(settings)
        async with catalogue.connect(settings) as store, serving(settings, token) as plane:
            new = registry.NewProject(
                user=USER, slug="yeastcoast", mode="v1_dedicated", hash=V1, postgres_url=pg18.url()
            )
            project = await registry.create_project(store, settings, new)
            env = {"FLUX_API_BASE": plane.base, "FLUX_API_TOKEN": token.reveal()}
            for name, change in STATES.items():
                await newest_is(store, directory, project, change)
                for skip in (False, True):
                    done = await restore(daemon, env, archive, V1, skip=skip)
                    expected = NO_SSH_HOST if skip or name in ALLOWED else REFUSED
                    assert done.returncode == expected, (name, skip, done.stderr)
                    if expected == REFUSED:
                        assert "flux backup create && flux backup verify --latest" in done.stderr
                        assert "--skip-backup-check" in done.stderr
            for skip in (False, True):
                done = await restore(daemon, env, archive, V1, skip=skip, acknowledged=False)
                assert (done.returncode, "overwrite" in done.stderr) == (REFUSED, True)
                done = await restore(daemon, env, archive, V2, skip=skip)
                assert (done.returncode, "not supported" in done.stderr) == (REFUSED, True)


async def newest_is(store, directory, project, change) -> None:
    """Make the project's newest backup this one; a running one has a lock whose holder lives."""
    await store.db.execute("DELETE FROM backups")
    await store.db.execute("DELETE FROM backup_locks")
    if change is None:
        return
    backup_id = await store.db.fetchval(
        "INSERT INTO backups (project_id, hash, kind, size_bytes, checksum_sha256) VALUES ($1, $2, 'project_db', 0,"
        " encode(sha256(''), 'hex')) RETURNING id",
        project.id,
        project.hash,
    )
    await store.db.execute(f"UPDATE backups SET {change} WHERE id = $1", backup_id)
    await store.db.execute(
        "INSERT INTO backup_locks (key, owner) VALUES ('backup:create:' || $1::text, gen_random_uuid())",
        str(project.id),
    )
    path = directory / str(project.id) / f"{backup_id}.dump"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


async def restore(daemon, env, archive, hash_, *, skip, acknowledged=True):
    flags = ["--skip-backup-check"] if skip else []
    flags += ["--yes-i-know-this-can-overwrite-data"] if acknowledged else []
    words = ("db", "restore", "--hash", hash_, "-p", "yeastcoast" if hash_ == V1 else "foundry")
    return await asyncio.to_thread(daemon.flux, *words, "--input", str(archive), *flags, env=env)
