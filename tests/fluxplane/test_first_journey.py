"""A plan, a role that reads its tenant's rows, and its end: on every supported PostgreSQL."""

import psycopg
import pytest

from fluxplane.lab.postgres import Server
from tests.fluxplane.conftest import fill, furnish, login, roles_in, schema_of, serving, settings_for


async def test_a_role_reads_its_tenants_rows_until_it_is_revoked(each_postgres: Server):
    settings = settings_for(each_postgres)
    token = await furnish(settings)
    fill(each_postgres, await schema_of(settings, "5774112"), "anvil")
    async with serving(settings, token) as ada:
        credential = (await ada.mint("5774112")).body
        with login(each_postgres, credential) as session:
            assert session.execute("SELECT name FROM things").fetchall() == [("anvil",)]
            ended = await ada.ask("DELETE", f"/api/cli/v1/grants/{credential['grantId']}")
            assert (ended.status, ended.body["state"]) == (200, "ended")
            with pytest.raises(psycopg.errors.AdminShutdown):
                session.execute("SELECT 1")
        assert credential["username"] not in roles_in(each_postgres)
