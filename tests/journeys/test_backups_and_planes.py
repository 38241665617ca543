"""`flux backup` against a plane that only has the contract's routes, and against one that goes away."""

import asyncio
import dataclasses
import hashlib
import os
import signal
import subprocess

import psycopg
import pytest

from fluxplane import catalogue, registry
from fluxplane.settings import BackupSettings
from tests.fluxplane.backups.conftest import replica
from tests.fluxplane.conftest import USER, furnish, serving, settings_for
from tests.furniture import awkward
from tests.furniture.postgres import enterable_directory
from tests.furniture.processes import command

pytestmark = pytest.mark.journey

PROJECT = ("yeastcoast", "--hash", "ffca33f")


@pytest.fixture
async def settings(pool18, pg18):
    """Of a plane with a filled v1 project; and its token."""
    with enterable_directory() as place, psycopg.connect(pg18.url().reveal(), autocommit=True) as link:
        made = settings_for(pool18, backups=BackupSettings(directory=place / "backups"))
        token = await furnish(made)
        async with catalogue.connect(made) as store:
            new = registry.NewProject(
                user=USER, slug="yeastcoast", mode="v1_dedicated", hash="ffca33f", postgres_url=pg18.url()
            )
            await registry.create_project(store, made, new)
        awkward.fill(link, "shop")
        yield made, token
        link.execute("DROP SCHEMA shop CASCADE")


async def flux(daemon, plane, token, *words):
    env = {"FLUX_API_BASE": plane.base, "FLUX_API_TOKEN": token.reveal()}
    return await asyncio.to_thread(daemon.flux, *words, env=env)


async def test_a_plane_with_the_contracts_routes_alone(settings, daemon):
    settings, token = settings
    async with serving(dataclasses.replace(settings, contract_only=True), token) as plane:
        for words in (("create",), ("verify", "--latest"), ("download", "--latest", "-o", "b.dump"), ("list",)):
            done = await flux(daemon, plane, token, "backup", words[0], *PROJECT, *words[1:])
            assert done.returncode == 0, done.stderr
        assert "restore_verified" in done.stdout
        assert (
            hashlib.sha256((daemon.home / "b.dump").read_bytes()).hexdigest()
            in (await flux(daemon, plane, token, "backup", "list", *PROJECT, "--verbose")).stdout
        )


async def test_a_plane_that_is_stopped_says_so_and_its_next_life_has_no_stuck_lock(settings, pg18, daemon):
    settings, token = settings
    with psycopg.connect(pg18.url().reveal()) as blocker:
        blocker.execute("LOCK TABLE shop.people")
        async with serving(settings, token) as plane:
            creating = asyncio.create_task(flux(daemon, plane, token, "backup", "create", *PROJECT))
            await dumping(pg18)
        done = await creating
    assert done.returncode == 6
    assert "The control plane was stopped meanwhile" in done.stderr
    async with serving(settings, token) as plane:
        listed = await flux(daemon, plane, token, "backup", "list", *PROJECT)
        assert "failed" in listed.stdout
        again = await flux(daemon, plane, token, "backup", "create", *PROJECT)
        assert again.returncode == 0, again.stderr


async def test_a_plane_that_is_killed_leaves_the_caller_a_way_to_see(settings, pg18, daemon):
    settings, token = settings
    with psycopg.connect(pg18.url().reveal()) as blocker:
        blocker.execute("LOCK TABLE shop.people")
        async with serving(settings, token) as survivor, replica(settings) as (process, address):
            victim = dataclasses.replace(survivor, base=address)
            creating = asyncio.create_task(flux(daemon, victim, token, "backup", "create", *PROJECT))
            await dumping(pg18)
            process.kill()
            done = await creating
    assert done.returncode == 6
    assert "stopped telling how far it is" in done.stderr
    assert "flux backup list" in done.stderr


async def test_a_verification_that_cannot_be_run_says_why_although_the_backup_is_verified(settings, daemon):
    """No socket fits below a directory of such a name: nothing is wrong with the backup."""
    settings, token = settings
    far = settings.backups.directory / ("x" * 60)
    settings = dataclasses.replace(settings, backups=dataclasses.replace(settings.backups, directory=far))
    async with serving(settings, token) as plane:
        assert (await flux(daemon, plane, token, "backup", "create", *PROJECT)).returncode == 0
        async with catalogue.connect(settings) as store:
            await store.db.execute("UPDATE backups SET restore = 'restore_verified', restore_at = now()")
        done = await flux(daemon, plane, token, "backup", "verify", *PROJECT, "--latest")
        listed = await flux(daemon, plane, token, "backup", "list", *PROJECT)
    assert done.returncode == 6
    assert "too long a path for a Unix socket" in done.stderr
    assert "restore_verified" in listed.stdout


async def test_a_client_that_is_killed_leaves_the_backup_to_the_plane(settings, pg18, daemon):
    settings, token = settings
    async with serving(settings, token) as plane:
        env = daemon.environment | {"FLUX_API_BASE": plane.base, "FLUX_API_TOKEN": token.reveal()}
        with psycopg.connect(pg18.url().reveal()) as blocker:
            blocker.execute("LOCK TABLE shop.people")
            words = [command("flux"), "backup", "create", *PROJECT]
            process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            await dumping(pg18)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        async with asyncio.timeout(30):
            while "complete" not in (await flux(daemon, plane, token, "backup", "list", *PROJECT)).stdout:
                await asyncio.sleep(0.1)


async def dumping(server) -> None:
    """Wait until pg_dump waits for the table."""
    ask = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pg_dump' AND wait_event_type = 'Lock'"
    async with asyncio.timeout(30):
        with psycopg.connect(server.url().reveal(), autocommit=True) as link:
            while not link.execute(ask).fetchone():
                await asyncio.sleep(0.05)
