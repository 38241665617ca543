"""
What is in a lab: one user, three projects, and in each some tables with rows.

`yeastcoast` (v1) has a Postgres of its own. `foundry` and its neighbour (v2) share the pool: foundry has a table whose
rows a policy hides (`invoices`) and a serial column (`castings.id`); what the neighbour has is there to be unreachable.
"""

from __future__ import annotations

from typing import Final

from fluxplane import catalogue, registry
from fluxplane.settings import Settings
from fluxplane.wire import V1, V2, Mode, Secret

USER: Final = "dev@lab.example"

POOL_CONTAINER: Final = "flux-postgres-v2"
DEDICATED_CONTAINER: Final = "flux-ffca33f-yeastcoast-db"

# slug, hash, mode
PROJECTS: Final[tuple[tuple[str, str, Mode], ...]] = (
    ("yeastcoast", "ffca33f", V1),
    ("foundry", "5774112", V2),
    ("neighbour", "0a1b2c3", V2),
)

YEASTCOAST: Final = """
CREATE TABLE strains (id integer PRIMARY KEY, name text NOT NULL, origin text NOT NULL, attenuation numeric(3, 2));
INSERT INTO strains VALUES
  (1, 'Kveik Voss', 'Norway', 0.78), (2, 'Saison Dupont', 'Belgium', 0.92),
  (3, 'London Ale III', 'England', 0.74), (4, 'Bohemian Lager', 'Czechia', 0.75);
CREATE TABLE batches (id integer PRIMARY KEY, strain integer REFERENCES strains, brewed date NOT NULL, litres integer);
INSERT INTO batches SELECT n, n % 4 + 1, date '2026-01-01' + n * 3, 200 + n % 7 * 25 FROM generate_series(1, 60) n;
CREATE VIEW litres_by_strain AS
  SELECT s.name, sum(b.litres) AS litres FROM strains s JOIN batches b ON b.strain = s.id GROUP BY s.name;
"""

FOUNDRY: Final = """
CREATE TABLE alloys (name text PRIMARY KEY, melts_at_c integer NOT NULL);
INSERT INTO alloys VALUES ('bronze', 950), ('brass', 930), ('cast iron', 1200), ('pewter', 230);
CREATE TABLE castings (id serial PRIMARY KEY, alloy text REFERENCES alloys, weight_kg numeric(6, 1), poured date);
INSERT INTO castings (alloy, weight_kg, poured)
  SELECT (ARRAY['bronze', 'brass', 'cast iron', 'pewter'])[n % 4 + 1], 10 + n * 1.5, date '2026-02-01' + n
  FROM generate_series(1, 40) n;
CREATE TABLE invoices (id integer PRIMARY KEY, customer text NOT NULL, amount_cents integer NOT NULL);
INSERT INTO invoices VALUES (1, 'Harbour Bells', 125000), (2, 'Anvil & Sons', 48050), (3, 'City Railings', 990000);
ALTER TABLE invoices ENABLE ROW LEVEL SECURITY;
ALTER TABLE invoices FORCE ROW LEVEL SECURITY;
CREATE POLICY service_sees_all ON invoices TO {runtime} USING (true) WITH CHECK (true);
GRANT USAGE ON SCHEMA {schema} TO {runtime};
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {runtime};
"""

NEIGHBOUR: Final = """
CREATE TABLE ledger (id integer PRIMARY KEY, entry text NOT NULL, amount_cents integer NOT NULL);
INSERT INTO ledger VALUES (1, 'neighbour-row-one', 4711), (2, 'neighbour-row-two', 815);
CREATE TABLE notes (id serial PRIMARY KEY, note text NOT NULL);
INSERT INTO notes (note) VALUES ('neighbour-note');
"""


async def ensure_token(store: catalogue.Catalogue, last: Secret | None) -> Secret:
    """The token of the last run if it still is one, else a new one of the lab's user."""
    await registry.create_user(store, USER, ensure=True)
    if last is not None and await registry.bearer(store, last) is not None:
        return last
    return await registry.create_token(store, USER)


async def ensure_dedicated(
    store: catalogue.Catalogue, settings: Settings, url: Secret, slug: str, hash_: str, place: tuple[str, int]
) -> None:
    """The v1 project, registered by connection; its Postgres is at *place* as the SSH host sees it, in this run."""
    project = await registry.find_project(store, USER, hash_)
    if project is None:
        new = registry.NewProject(
            user=USER,
            slug=slug,
            mode=V1,
            hash=hash_,
            postgres_url=url,
            internal_host=place[0],
            internal_port=place[1],
            container=DEDICATED_CONTAINER,
        )
        await registry.create_project(store, settings, new)
    else:
        await registry.move_project(store, project, postgres_url=url, internal_host=place[0], internal_port=place[1])
    async with catalogue.connection(url, "The lab's dedicated Postgres") as link, link.transaction():
        if await link.fetchval("SELECT to_regclass('public.strains')") is None:
            await link.execute("SET LOCAL search_path = public")
            await link.execute(YEASTCOAST)


async def ensure_pooled(store: catalogue.Catalogue, settings: Settings, slug: str, hash_: str) -> None:
    """A v2 project, its schema and its tables, which belong to the schema's owner as pushed ones do."""
    project = await registry.find_project(store, USER, hash_)
    if project is None:
        new = registry.NewProject(user=USER, slug=slug, mode=V2, hash=hash_)
        project = await registry.create_project(store, settings, new)
    text = {"foundry": FOUNDRY, "neighbour": NEIGHBOUR}[slug]
    schema, owner, runtime = map(catalogue.quoted, (project.api_schema, project.owner_role, project.runtime_role))
    assert settings.pool_admin_url is not None
    async with catalogue.connection(settings.pool_admin_url, "The lab's pool") as link, link.transaction():
        if await link.fetchval("SELECT 1 FROM pg_tables WHERE schemaname = $1", project.api_schema):
            return
        await link.execute(f"SET LOCAL ROLE {owner}")
        await link.execute(f"SET LOCAL search_path = {schema}")
        await link.execute(text.replace("{schema}", schema).replace("{runtime}", runtime))
