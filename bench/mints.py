"""
`make bench-plane`: what a temporary role costs, with few and with many tenants in the pool.

One PostgreSQL 18 with the catalogue and a prepared pool; tenants of a few tables each. Told are HTTP mints through the
control plane (one caller: median; eight: mints per second), the part of it that is the pool's (`flux_plane.mint`), and
the straightforward way in the same run: a superuser grants on all tables of the schema, then creates the role.
Every role is ended again. Few and many tenants have a pool each, and take turns mint by mint.
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

    def project(self, number):
        return self.projects[number % len(self.projects)]


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


@contextlib.asynccontextmanager
async def serving(bed):
    """Somebody who mints over HTTP: answers the grant's id."""
    async with api.serve(bed.settings, "127.0.0.1", 0) as port, aiohttp.ClientSession() as http:
        base = f"http://127.0.0.1:{port}/api/cli/v1"
        headers = {"Authorization": f"Bearer {bed.token.reveal()}"}

        async def mint(number):
            where = f"{base}/projects/{bed.project(number).hash}/db-access/temporary-credential"
            async with http.post(where, json={}, headers=headers) as answer:
                answer.raise_for_status()
                return (await answer.json())["grantId"]

        async def revoke(grant):
            async with http.delete(f"{base}/grants/{grant}") as answer:
                answer.raise_for_status()

        yield mint, revoke


async def over_http(beds, mints):
    """For each bed, seconds of each of so many mints: one here, one there, since machines have moods."""
    took = {bed.tenants: [] for bed in beds}
    async with contextlib.AsyncExitStack() as stack:
        callers = {bed.tenants: await stack.enter_async_context(serving(bed)) for bed in beds}
        for number in range(mints):
            for tenants, (mint, revoke) in callers.items():
                begun = time.perf_counter()
                grant = await mint(number)
                took[tenants].append(time.perf_counter() - begun)
                await revoke(grant)
    return took


async def rate(bed, mints):
    """Mints per second of eight callers."""
    async with serving(bed) as (mint, revoke):

        async def caller(number):
            return [await mint(number) for _ in range(mints // 8)]

        begun = time.perf_counter()
        grants = [grant for some in await asyncio.gather(*map(caller, range(8))) for grant in some]
        per_second = len(grants) / (time.perf_counter() - begun)
        for grant in grants:
            await revoke(grant)
        return per_second


async def in_the_pool(beds, mints):
    took = {bed.tenants: [] for bed in beds}
    verifier = keychain.scram_verifier(Secret("pw"), b"0" * 16)
    until = dt.datetime.fromtimestamp(time.time() + 3600, dt.UTC)
    async with contextlib.AsyncExitStack() as stack:
        ours = {bed.tenants: await stack.enter_async_context(roles.connect(bed.settings)) for bed in beds}
        for number in range(mints):
            for bed in beds:
                name = f"flux_temp_ro_0000000_{secrets.token_hex(4)}"
                begun = time.perf_counter()
                await ours[bed.tenants].mint(bed.project(number).id, "readonly", name, verifier, until)
                took[bed.tenants].append(time.perf_counter() - begun)
                await ours[bed.tenants].end(name)
    return took


def plainly(beds, mints):
    """The existing platform's way (contract §5): as the administrator, granting on every table at each mint."""
    took = {bed.tenants: [] for bed in beds}
    for number in range(mints):
        for bed in beds:
            begun = time.perf_counter()
            name = plain_mint(bed, bed.project(number))
            took[bed.tenants].append(time.perf_counter() - begun)
            with psycopg.connect(bed.admin_url, autocommit=True) as link:
                link.execute(f"DROP ROLE {name}")
    return took


def plain_mint(bed, project):
    schema, group, name = project.api_schema, f"plain_{project.short_id}", "plain_" + secrets.token_hex(8)
    default = f"ALTER DEFAULT PRIVILEGES FOR ROLE {project.runtime_role} IN SCHEMA {schema}"
    with psycopg.connect(bed.admin_url, autocommit=True) as link:
        if not link.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [group]).fetchone():
            link.execute(f"CREATE ROLE {group} NOLOGIN")
        link.execute(f"GRANT USAGE ON SCHEMA {schema} TO {group}")
        link.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {group}")
        link.execute(f"{default} GRANT SELECT ON TABLES TO {group}")
        link.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'pw' VALID UNTIL 'infinity'")
        link.execute(f"GRANT {group} TO {name}")
        link.execute(f"ALTER ROLE {name} SET search_path = {schema}, public")
    return name


def main():
    options = rig.options(__doc__, mints=300, few=10, many=3000).parse_args()
    with bed(options.few) as few, bed(options.many) as many:
        beds = (few, many)
        found = {
            "http": asyncio.run(over_http(beds, options.mints)),
            "pool": asyncio.run(in_the_pool(beds, options.mints)),
            "plain": plainly(beds, options.mints),
        }
        rates = {one.tenants: [] for one in beds}
        for _ in range(3):
            for one in beds:
                rates[one.tenants].append(asyncio.run(rate(one, options.mints)))
    rig.publish("bench-plane", table(found, rates, options), options.write)


def table(found, rates, options):
    few, many = options.few, options.many
    yield f"Medians of {options.mints} mints each, turn by turn in two pools; {TABLES} tables per tenant."
    yield ""
    yield f"| | {few} tenants | {many} tenants | ratio | goal | met |"
    yield "|---|---|---|---|---|---|"
    for text, name in WAYS.items():
        here, there = (statistics.median(found[name][tenants]) for tenants in (few, many))
        goal, met = ("≤ 1.3", "yes" if there / here <= 1.3 else "no") if name != "plain" else ("", "")
        yield f"| {text} | {here * 1e3:.1f} ms | {there * 1e3:.1f} ms | {there / here:.2f} | {goal} | {met} |"
    here, there = (statistics.median(rates[tenants]) for tenants in (few, many))
    yield f"| mints per second, eight callers | {here:.0f} | {there:.0f} | {there / here:.2f} | | |"


if __name__ == "__main__":
    main()
