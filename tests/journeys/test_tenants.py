"""
As a `foundry` role, through its tunnel: nothing of `neighbour` can be read or written.

The ways in that PostgreSQL offers, one by one, are `tests/fluxplane/test_hostile_tenant.py`'s; here the two tenants are
the lab's, and whatever can be selected from at all is searched for the neighbour's values.
"""

import contextlib
import json
import urllib.request

import psycopg
import pytest
from psycopg import sql

from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab

pytestmark = pytest.mark.journey

FOUNDRY = ("foundry", "--hash", "5774112")
VALUES = (b"neighbour-row-one", b"neighbour-row-two", b"neighbour-note")


def neighbours_schema(lab: Lab) -> str:
    request = urllib.request.Request(
        f"{lab.facts['api_base']}/cli/v1/projects/0a1b2c3/db-access",
        headers={"Authorization": f"Bearer {lab.facts['token']}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return str(json.load(answer)["tenantSchema"])


@contextlib.contextmanager
def as_foundry(lab: Lab, daemon: Daemon):
    """A session of a new foundry role through its tunnel."""
    opened = daemon.flux_json("tunnel", "open", *FOUNDRY, env=lab.env)
    credential = opened["credential"]
    with psycopg.connect(
        host=opened["tunnel"]["host"],
        port=opened["tunnel"]["port"],
        user=credential["username"],
        password=credential["password"],
        dbname="postgres",
        autocommit=True,
    ) as session:
        session.execute("SET default_transaction_read_only = off")
        yield session


def test_what_can_be_selected_from_holds_nothing_of_the_neighbours(lab: Lab, daemon: Daemon):
    with psycopg.connect(lab.pool_admin_url) as admin:
        seen_by_all = readable(admin)
        admin.execute("ANALYZE")  # so that pg_stats has the neighbour's values, for those who may see them
    with as_foundry(lab, daemon) as session:
        relations = readable(session)
        holding = [name for name in relations if holds_a_value(session, name)]
    assert holding == []
    assert {"pg_catalog.pg_stats", "pg_catalog.pg_stat_activity"} <= set(relations)
    assert f"{neighbours_schema(lab)}.ledger" in set(seen_by_all) - set(relations)


def test_the_search_would_have_found_them(lab: Lab):
    with psycopg.connect(lab.pool_admin_url, autocommit=True) as admin:
        admin.execute("ANALYZE")
        assert holds_a_value(admin, f"{neighbours_schema(lab)}.ledger")
        assert holds_a_value(admin, "pg_catalog.pg_stats")


def readable(session: psycopg.Connection) -> list[str]:
    """Every table, view and materialised view of the database that this role may select a column from."""
    rows = session.execute(
        "SELECT n.nspname::text || '.' || c.relname::text FROM pg_catalog.pg_class c"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'v', 'm', 'p', 'f') AND has_schema_privilege(n.oid, 'USAGE')"
        " AND has_any_column_privilege(c.oid, 'SELECT') ORDER BY 1"
    ).fetchall()
    return [str(row[0]) for row in rows]


def holds_a_value(session: psycopg.Connection, name: str) -> bool:
    """Whatever COPY shows of it, searched as bytes. What may not be shown after all holds nothing."""
    query = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT").format(sql.Identifier(*name.split(".", 1)))
    try:
        with session.cursor() as cursor, cursor.copy(query) as copy:
            text = b"".join(bytes(piece) for piece in copy)
    except psycopg.Error:
        return False
    return any(value in text for value in VALUES)


@pytest.mark.parametrize(
    "attempt",
    [
        "SELECT * FROM {schema}.ledger",
        "SELECT entry FROM {schema}.ledger",
        "TABLE {schema}.notes",
        "INSERT INTO {schema}.ledger VALUES (3, 'foundry was here', 0)",
        "UPDATE {schema}.ledger SET amount_cents = 0",
        "DELETE FROM {schema}.ledger",
        "TRUNCATE {schema}.ledger",
        "DROP TABLE {schema}.ledger",
        "CREATE TABLE {schema}.mine ()",
        "SELECT nextval('{schema}.notes_id_seq')",
        "ALTER SCHEMA {schema} RENAME TO mine",
        "CREATE VIEW pg_temp.v AS SELECT * FROM {schema}.ledger",
        "SET ROLE {ddl}",
        "SET ROLE {role}",
        "GRANT {role} TO CURRENT_USER",
        "SET ROLE postgres",
        "COPY {schema}.ledger TO STDOUT",
    ],
)
def test_every_attempt_on_the_neighbours_tables_is_refused(lab: Lab, daemon: Daemon, attempt):
    schema = neighbours_schema(lab)
    names = {"schema": schema, "ddl": schema.replace("_api", "_ddl"), "role": schema.replace("_api", "_role")}
    with psycopg.connect(lab.pool_admin_url) as admin:
        before = admin.execute(f"SELECT * FROM {schema}.ledger ORDER BY 1").fetchall()
    with as_foundry(lab, daemon) as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute(attempt.format(**names))
    with psycopg.connect(lab.pool_admin_url) as admin:
        assert before == admin.execute(f"SELECT * FROM {schema}.ledger ORDER BY 1").fetchall()


def test_the_catalogues_database_cannot_be_entered(lab: Lab, daemon: Daemon):
    opened = daemon.flux_json("tunnel", "open", *FOUNDRY, env=lab.env)
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(
            host=opened["tunnel"]["host"],
            port=opened["tunnel"]["port"],
            user=opened["credential"]["username"],
            password=opened["credential"]["password"],
            dbname="fluxplane",
        )


def test_rows_behind_a_policy_are_empty_and_said_to_be(lab: Lab, daemon: Daemon):
    with as_foundry(lab, daemon) as session:
        schema = session.execute("SELECT nspname::text FROM pg_namespace WHERE has_schema_privilege(oid, 'USAGE')")
        tenant = next(name for (name,) in schema.fetchall() if name.startswith("t_"))
        assert session.execute(f"SELECT count(*) FROM {tenant}.invoices").fetchone() == (0,)
    plan = daemon.flux_json("db", "access-plan", *FOUNDRY, env=lab.env)
    assert plan["rlsTables"] == [f"{tenant}.invoices"]
