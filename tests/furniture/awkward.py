"""
A schema of what breaks naive dumps: domains, identity, partitions, RLS, generated columns, odd names, and the rest.

`fill` makes it, `fingerprint` says whether two are the same, row by row and object by object.
"""

import hashlib

import psycopg
from psycopg import sql

OBJECTS = """
SET search_path = {schema};
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE TYPE mood AS ENUM ('calm', 'tense');
CREATE TYPE pair AS (a integer, b text);
CREATE TABLE people (
    id bigint GENERATED ALWAYS AS IDENTITY (START 1000 INCREMENT 5) PRIMARY KEY,
    name text NOT NULL CHECK (name IN ('ada', 'bob') OR length(name) > 3),
    age positive, feeling mood DEFAULT 'calm', both_of pair,
    doubled integer GENERATED ALWAYS AS (age * 2) STORED,
    seen timestamptz DEFAULT now(), raw bytea, tags text[], body jsonb
);
CREATE TABLE counted (id serial PRIMARY KEY, person bigint REFERENCES people ON DELETE CASCADE, note text);
CREATE TABLE events (at date NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE events_rest PARTITION OF events DEFAULT;
CREATE INDEX ON events (at);
CREATE TABLE parent_of (a integer);
CREATE TABLE child_of (b integer) INHERITS (parent_of);
CREATE UNLOGGED TABLE quick (a integer);
CREATE TABLE "odd: \\ 'na""me" ("Ünï: c" integer, "select" text);
CREATE TABLE none_at_all ();
CREATE VIEW adults AS SELECT id, name FROM people WHERE age >= 18;
CREATE MATERIALIZED VIEW totals AS SELECT feeling, count(*) AS n FROM people GROUP BY feeling;
CREATE INDEX by_lower ON people (lower(name)) WHERE age > 1;
CREATE FUNCTION shout(word text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
-- Name: not a heading; Type: TABLE
  RETURN upper(word);
END $$;
CREATE INDEX by_shout ON people (shout(name));
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.seen := now(); RETURN NEW; END $$;
CREATE TRIGGER touched BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION touch();
CREATE TABLE private_rows (id integer PRIMARY KEY, owner text, secret text);
ALTER TABLE private_rows ENABLE ROW LEVEL SECURITY;
ALTER TABLE private_rows FORCE ROW LEVEL SECURITY;
COMMENT ON TABLE people IS 'those of whom we know; Type: none';
"""

ROWS = """
SET search_path = {schema};
INSERT INTO people (name, age, feeling, both_of, raw, tags, body)
SELECT 'person ' || n, 1 + n % 90, (ARRAY['calm', 'tense'])[1 + n % 2]::mood, ROW(n, 'b' || n)::pair,
       decode(md5(n::text), 'hex'), ARRAY['x', NULL, n::text], jsonb_build_object('n', n, 'ü', E'\\t"')
FROM generate_series(1, {rows}) n;
INSERT INTO counted (person, note) SELECT id, E'line\\nbreak\\t' || id FROM people;
INSERT INTO events SELECT date '2024-12-25' + n % 400, 'e' || n FROM generate_series(1, {rows}) n;
INSERT INTO parent_of VALUES (1); INSERT INTO child_of VALUES (2, 3);
INSERT INTO quick SELECT generate_series(1, 10);
INSERT INTO "odd: \\ 'na""me" VALUES (1, 'from'), (2, NULL);
INSERT INTO private_rows SELECT n, 'o' || n % 3, md5(n::text) FROM generate_series(1, {rows}) n;
REFRESH MATERIALIZED VIEW totals;
"""


def fill(
    connection: psycopg.Connection, schema: str, *, rows: int = 500, policies: str = "", owner: str | None = None
) -> None:
    """Into a *schema* of its own; or with *owner*, into that role's."""
    named = sql.Identifier(schema).as_string(connection)
    connection.execute(f"SET ROLE {owner}" if owner else f"CREATE SCHEMA {named}")
    for text in (OBJECTS, "RESET ROLE", ROWS, policies):
        connection.execute(text.replace("{schema}", named).replace("{rows}", str(rows)))
    connection.execute("RESET search_path")


REMOVAL = """
SET search_path = {schema};
DROP TABLE people, counted, events, parent_of, child_of, quick, "odd: \\ 'na""me", none_at_all, private_rows CASCADE;
DROP FUNCTION shout, touch;
DROP DOMAIN positive;
DROP TYPE mood, pair;
RESET search_path;
"""


def remove(connection: psycopg.Connection, schema: str) -> None:
    """What `fill` made in a schema that others have things in too."""
    connection.execute(REMOVAL.replace("{schema}", sql.Identifier(schema).as_string(connection)))


def tables(connection: psycopg.Connection, schema: str) -> list[str]:
    question = (
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relkind IN ('r', 'm') ORDER BY 1"
    )
    return [str(row[0]) for row in connection.execute(question, [schema]).fetchall()]


def rows_of(connection: psycopg.Connection, schema: str, table: str) -> str:
    """A checksum of a table's rows, in no order."""
    ask = sql.SQL("SELECT t::text FROM ONLY {} t").format(sql.Identifier(schema, table))
    words = sorted(str(row[0]) for row in connection.execute(ask).fetchall())
    return f"{len(words)}:{hashlib.sha256(chr(10).join(words).encode()).hexdigest()}"


SHAPE = """
SELECT string_agg(word, E'\\n' ORDER BY word) FROM (
    SELECT format('%%s %%s %%s %%s %%s %%s', c.relkind, c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
                  a.attnotnull, a.attidentity::text || a.attgenerated::text) AS word
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE n.nspname = %(schema)s
    UNION ALL SELECT format('constraint %%s %%s', conname, pg_get_constraintdef(oid)) FROM pg_constraint
    WHERE connamespace = %(schema)s::regnamespace
    UNION ALL SELECT format('function %%s', pg_get_functiondef(oid)) FROM pg_proc
    WHERE pronamespace = %(schema)s::regnamespace
    UNION ALL SELECT format('default %%s %%s %%s', relname, adnum, pg_get_expr(adbin, adrelid)) FROM pg_attrdef
    JOIN pg_class c ON c.oid = adrelid WHERE relnamespace = %(schema)s::regnamespace
    UNION ALL SELECT format('%%s %%s', relname, pg_get_viewdef(oid)) FROM pg_class
    WHERE relnamespace = %(schema)s::regnamespace AND relkind IN ('v', 'm')
    UNION ALL SELECT format('%%s', pg_get_indexdef(oid)) FROM pg_class
    WHERE relnamespace = %(schema)s::regnamespace AND relkind = 'i'
    UNION ALL SELECT format('table %%s %%s %%s %%s', relname, relpersistence, relforcerowsecurity,
                            obj_description(oid, 'pg_class'))
    FROM pg_class WHERE relnamespace = %(schema)s::regnamespace AND relkind IN ('r', 'p')
    UNION ALL SELECT format('policy %%s %%s %%s', polname, pg_get_expr(polqual, polrelid), relrowsecurity)
    FROM pg_policy JOIN pg_class c ON c.oid = polrelid WHERE relnamespace = %(schema)s::regnamespace
    UNION ALL SELECT format('trigger %%s', tgname) FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid
    WHERE relnamespace = %(schema)s::regnamespace AND NOT tgisinternal
    UNION ALL SELECT format('partition %%s %%s', relname, pg_get_expr(relpartbound, oid)) FROM pg_class
    WHERE relnamespace = %(schema)s::regnamespace AND relispartition
) all_of_it
"""


def fingerprint(connection: psycopg.Connection, schema: str, *, with_rows: bool = True) -> dict[str, str]:
    connection.execute("SET TIME ZONE 'UTC'")
    connection.execute("SET search_path = ''")
    shape = connection.execute(SHAPE, {"schema": schema}).fetchone()
    connection.execute("RESET search_path")
    assert shape is not None
    found = {"": str(shape[0])}
    if with_rows:
        found |= {table: rows_of(connection, schema, table) for table in tables(connection, schema)}
        found |= {"sequence " + name: value for name, value in sequences(connection, schema).items()}
    return found


def sequences(connection: psycopg.Connection, schema: str) -> dict[str, str]:
    ask = "SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = %s"
    return {str(name): str(value) for name, value in connection.execute(ask, [schema]).fetchall()}
