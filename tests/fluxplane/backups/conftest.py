"""A plane with backups: two projects of each kind that are worth one, and how they are asked for."""

import contextlib
import dataclasses

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


@pytest.fixture
async def settings(pool18, pg18):
    """A plane with foundry (v2, filled) and yeastcoast (v1, filled), and a directory for backups."""
    with enterable_directory() as place, clean(pg18):
        made = settings_for(pool18, backups=BackupSettings(directory=place / "backups"))
        name = psycopg.conninfo.conninfo_to_dict(made.pool_url.reveal())["user"]
        made = dataclasses.replace(made, pool_backup_url=url(pool18, f"{name}_backup", "backup-pw"))
        token = await furnish(made)
        async with catalogue.connect(made) as catalog:
            new = registry.NewProject(
                user=USER, slug="yeastcoast", mode="v1_dedicated", hash=V1, postgres_url=pg18.url()
            )
            await registry.create_project(catalog, made, new)
        yield made, token


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
