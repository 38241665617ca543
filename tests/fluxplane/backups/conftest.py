"""A plane with backups: two projects of each kind that are worth one, and how they are asked for."""

import asyncio
import contextlib
import dataclasses
import os
import sys

import psycopg
import pytest

from fluxplane import catalogue, registry
from fluxplane.settings import BackupSettings
from tests.fluxplane.conftest import USER, fill, furnish, schema_of, settings_for, url
from tests.furniture import awkward
from tests.furniture.postgres import enterable_directory

V1, V2 = "ffca33f", "5774112"
POLICIES = "CREATE POLICY own ON private_rows USING (owner = 'o1');"


def base(hash_):
    return f"/api/cli/v1/projects/{hash_}/backups"


async def new_plane(pool18, pg18):
    """The settings of a plane with foundry and neighbour (v2) and yeastcoast (v1), and its user's token."""
    made = settings_for(pool18)
    name = psycopg.conninfo.conninfo_to_dict(made.pool_url.reveal())["user"]
    made = dataclasses.replace(made, pool_backup_url=url(pool18, f"{name}_backup", "backup-pw"))
    token = await furnish(made)
    async with catalogue.connect(made) as catalog:
        new = registry.NewProject(user=USER, slug="yeastcoast", mode="v1_dedicated", hash=V1, postgres_url=pg18.url())
        await registry.create_project(catalog, made, new)
    return made, token


@pytest.fixture(scope="session")
def session_plane(pool18, pg18):
    """Furnished once: that takes longer than most tests do."""
    return asyncio.run(new_plane(pool18, pg18))


@pytest.fixture
def settings(session_plane, pool18, pg18):
    """A plane as if new, yeastcoast's database filled, and a directory for backups."""
    made, token = session_plane
    with enterable_directory() as place, clean(pg18):
        as_new(made, pool18)
        yield dataclasses.replace(made, backups=BackupSettings(directory=place / "backups")), token


def as_new(settings, server):
    """Without backups, records, further projects, and what `filled` made."""
    database = psycopg.conninfo.conninfo_to_dict(settings.catalogue_url.reveal())["dbname"]
    with psycopg.connect(server.url(database).reveal(), autocommit=True) as link:
        link.execute("TRUNCATE flux.backups, flux.backup_locks, flux.audit, flux.activity")
        link.execute("DELETE FROM flux.projects WHERE slug NOT IN ('foundry', 'neighbour', 'yeastcoast')")
        schemas = link.execute("SELECT api_schema FROM flux.projects WHERE mode = 'v2_shared'").fetchall()
    with psycopg.connect(server.url().reveal(), autocommit=True) as link:
        for (schema,) in schemas:
            link.execute(f"DROP TABLE IF EXISTS {schema}.things, {schema}.secrets")


@contextlib.contextmanager
def clean(server):
    """The dedicated server's own database, with the awkward schema for as long as the block runs."""
    with psycopg.connect(server.url().reveal(), autocommit=True) as link:
        awkward.fill(link, "shop", policies=POLICIES)
        link.execute("SELECT lo_from_bytea(4711, 'large')")
        try:
            yield
        finally:
            link.execute("DROP SCHEMA shop CASCADE")
            link.execute("SELECT lo_unlink(4711)")


async def filled(settings, pool18):
    schema = await schema_of(settings, V2)
    fill(pool18, schema, "one", "two")
    with psycopg.connect(pool18.url().reveal(), autocommit=True) as link:
        link.execute(f"INSERT INTO {schema}.secrets SELECT generate_series(1, 7)")
    return schema


async def made(plane, hash_) -> dict:
    answer = await plane.post(base(hash_))
    assert answer.status == 200, answer.body
    return answer.body["backup"]


async def newest(plane, hash_) -> dict:
    return (await plane.get(base(hash_))).body["backups"][0]


SERVE = """
import asyncio, pickle, sys
from fluxplane import api, settings
from fluxplane.backups import store

async def main():
    s = settings.Settings.from_environment(__import__("os").environ)
    async with api.serve(s, "127.0.0.1", 0) as port:
        print(port, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def replica(settings):
    """A plane in a process of its own, that can be killed."""
    environment = {
        "PATH": os.environ["PATH"],
        "FLUXPLANE_CATALOGUE_URL": settings.catalogue_url.reveal(),
        "FLUXPLANE_POOL_URL": settings.pool_url.reveal(),
        "FLUXPLANE_KEY": settings.key.reveal(),
        "FLUX_BACKUPS_LOCAL_DIR": str(settings.backups.directory),
    }
    if settings.pool_backup_url is not None:
        environment["FLUXPLANE_POOL_BACKUP_URL"] = settings.pool_backup_url.reveal()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVE, stdout=asyncio.subprocess.PIPE, env=environment
    )
    try:
        yield process, f"http://127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()
