"""
`make bench-plane`: what a temporary role costs, with few and with many tenants in the pool.

One PostgreSQL 18 with the catalogue and a prepared pool; tenants of a few tables each. Told are HTTP mints through the
control plane (one caller: median; eight: mints per second), the part of it that is the pool's (`flux_plane.mint`), and
the straightforward way in the same rounds: a superuser grants on all tables of the schema, then creates the role.
Every role is ended again. Rounds with few and with many tenants take turns in pools of their own.
"""

import asyncio
import contextlib
import dataclasses
import datetime as dt
import secrets
import statistics
import time
import uuid

import aiohttp
import psycopg

from bench import rig
from fluxplane import api, catalogue, keychain, pool, registry, roles
from fluxplane.settings import Limits, Settings
from fluxplane.wire import Secret

USER = "bench@example.test"
TABLES = 20
ENDLESS = Limits(10**9, 10**9, 10**9, 10**9, 10**9, 10**9, 10**9)
WAYS = {
    "over HTTP, one caller: median": "http",
    "of it in the pool (`flux_plane.mint`): median": "pool",
    "the straightforward way: median": "plain",
}


@dataclasses.dataclass
class Bed:
    """One server with so many tenants; the first ones are minted for."""

    tenants: int
    admin_url: str
    settings: Settings
    token: Secret
    projects: list


@contextlib.contextmanager
def bed(tenants):
    with rig.directory() as home, rig.postgres(home) as server:
        name = "fluxplane"
        settings = Settings(
            catalogue_url=Secret(f"postgresql://catalogue:pw@127.0.0.1:{server.port}/{name}"),
            catalogue_admin_url=server.url(),
            pool_url=Secret(f"postgresql://plane:pw@127.0.0.1:{server.port}/postgres"),
            pool_admin_url=server.url(),
            key=keychain.new_key(),
            limits=ENDLESS,
        )
        token, projects = asyncio.run(furnish(settings))
        crowd(server.url().reveal(), tenants - len(projects))
        with psycopg.connect(server.url().reveal(), autocommit=True) as link:
            link.execute("VACUUM ANALYZE")
        yield Bed(tenants, server.url().reveal(), settings, token, projects)


async def furnish(settings, projects=10):
    await catalogue.migrate(settings)
    async with catalogue.connect(settings) as store:
        await pool.prepare(settings, store)
        await registry.create_user(store, USER)
        made = [
            await registry.create_project(
                store,
                settings,
                registry.NewProject(user=USER, slug=f"p{number}", mode="v2_shared", hash=f"{number:07x}"),
            )
            for number in range(projects)
        ]
        with psycopg.connect(settings.pool_admin_url.reveal(), autocommit=True) as link:
            for project in made:
                tables(link, project.owner_role, project.api_schema)
        return await registry.create_token(store, USER), made


def tables(link, owner, schema):
    link.execute(f"SET ROLE {owner}")
    for number in range(TABLES):
        link.execute(f"CREATE TABLE {schema}.t{number} (id serial)")
    link.execute("RESET ROLE")


def crowd(url, tenants):
    """Other people's tenants: made with the functions that make ours, without the catalogue's rows."""
    with psycopg.connect(url, autocommit=True) as link:
        for _ in range(max(0, tenants)):
            project = uuid.uuid4()
            short = project.hex[:12]
            owner, schema = f"t_{short}_ddl", f"t_{short}_api"
            link.execute(f"CREATE ROLE {owner} NOLOGIN; CREATE ROLE t_{short}_role NOLOGIN")
            link.execute(f"GRANT flux_pool_tenants TO {owner}, t_{short}_role WITH INHERIT TRUE, SET FALSE")
            link.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {owner}")
            link.execute(f"SET ROLE {owner}")
            link.execute(f"CREATE TABLE {schema}.t (id serial)")
            link.execute("RESET ROLE")
            link.execute(f"SELECT flux_plane.adopt('{project}', '{schema}', 'plane')")
            link.execute("SET SESSION AUTHORIZATION plane")
            link.execute(f"SELECT flux_plane.ensure('{project}')")
            link.execute("RESET SESSION AUTHORIZATION")


async def mint(http, base, bed, number):
    project = bed.projects[number % len(bed.projects)]
    begun = time.perf_counter()
    where = f"{base}/api/cli/v1/projects/{project.hash}/db-access/temporary-credential"
    async with http.post(where, json={}, headers={"Authorization": f"Bearer {bed.token.reveal()}"}) as answer:
        body = await answer.json()
        answer.raise_for_status()
    took = time.perf_counter() - begun
    return took, body["grantId"]


async def revoke(http, base, grants):
    for grant in grants:
        async with http.delete(f"{base}/api/cli/v1/grants/{grant}") as answer:
            answer.raise_for_status()


async def over_http(bed, mints):
    """Seconds of each of so many mints one after another, and mints per second of eight callers."""
    async with api.serve(bed.settings, "127.0.0.1", 0) as port, aiohttp.ClientSession() as http:
        base = f"http://127.0.0.1:{port}"
        grants, took = [], []
        for number in range(mints):
            seconds, grant = await mint(http, base, bed, number)
            took.append(seconds)
            grants.append(grant)
        begun = time.perf_counter()
        eight = await asyncio.gather(*(several(http, base, bed, caller, mints // 8) for caller in range(8)))
        rate = sum(map(len, eight)) / (time.perf_counter() - begun)
        await revoke(http, base, grants + [grant for some in eight for grant in some])
        return took, rate


async def several(http, base, bed, caller, mints):
    return [(await mint(http, base, bed, caller))[1] for _ in range(mints)]


async def in_the_pool(bed, mints):
    took, names = [], []
    async with roles.connect(bed.settings) as ours:
        for number in range(mints):
            name = f"flux_temp_ro_{bed.projects[0].hash}_{secrets.token_hex(4)}"
            verifier = keychain.scram_verifier(Secret("pw"), b"0" * 16)
            until = dt.datetime.fromtimestamp(time.time() + 3600, dt.UTC)
            begun = time.perf_counter()
            await ours.mint(bed.projects[number % len(bed.projects)].id, "readonly", name, verifier, until)
            took.append(time.perf_counter() - begun)
            names.append(name)
        for name in names:
            await ours.end(name)
    return took


def plainly(bed, mints):
    """The existing platform's way (contract §5): as the administrator, granting on every table at each mint."""
    took = []
    for number in range(mints):
        project = bed.projects[number % len(bed.projects)]
        schema, group, name = project.api_schema, f"plain_{project.short_id}", "plain_" + secrets.token_hex(8)
        begun = time.perf_counter()
        with psycopg.connect(bed.admin_url, autocommit=True) as link:
            if not link.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [group]).fetchone():
                link.execute(f"CREATE ROLE {group} NOLOGIN")
            link.execute(f"GRANT USAGE ON SCHEMA {schema} TO {group}")
            link.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {group}")
            link.execute(
                f"ALTER DEFAULT PRIVILEGES FOR ROLE {project.runtime_role} IN SCHEMA {schema}"  # as it does
                f" GRANT SELECT ON TABLES TO {group}"
            )
            link.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'pw' VALID UNTIL 'infinity'")
            link.execute(f"GRANT {group} TO {name}")
            link.execute(f"ALTER ROLE {name} SET search_path = {schema}, public")
        took.append(time.perf_counter() - begun)
        with psycopg.connect(bed.admin_url, autocommit=True) as link:
            link.execute(f"DROP ROLE {name}")
    return took


def main():
    options = rig.options(__doc__, rounds=5, mints=80, few=10, many=3000).parse_args()
    found = {}
    with bed(options.few) as few, bed(options.many) as many:
        for _ in range(options.rounds):
            for one in (few, many):
                took, rate = asyncio.run(over_http(one, options.mints))
                values = {
                    "http": statistics.median(took),
                    "rate": rate,
                    "pool": statistics.median(asyncio.run(in_the_pool(one, options.mints))),
                    "plain": statistics.median(plainly(one, options.mints)),
                }
                for name, value in values.items():
                    found.setdefault((one.tenants, name), []).append(value)
    rig.publish("bench-plane", table(found, options), options.write)


def table(found, options):
    few, many = options.few, options.many
    middle = {key: statistics.median(values) for key, values in found.items()}
    yield f"{options.rounds} rounds of {options.mints} mints each; medians of the rounds; {TABLES} tables per tenant."
    yield ""
    yield f"| | {few} tenants | {many} tenants | ratio | goal | met |"
    yield "|---|---|---|---|---|---|"
    for text, name in WAYS.items():
        ratio = middle[many, name] / middle[few, name]
        goal, met = ("≤ 1.3", "yes" if ratio <= 1.3 else "no") if name != "plain" else ("", "")
        took = " | ".join(f"{middle[tenants, name] * 1e3:.1f} ms" for tenants in (few, many))
        yield f"| {text} | {took} | {ratio:.2f} | {goal} | {met} |"
    rates = middle[few, "rate"], middle[many, "rate"]
    yield f"| mints per second, eight callers | {rates[0]:.0f} | {rates[1]:.0f} | {rates[1] / rates[0]:.2f} | | |"


if __name__ == "__main__":
    main()
