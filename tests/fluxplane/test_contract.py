"""
The contract's routes over raw HTTP: statuses, literals and the order of checks, as the platform's sheet has them.

Written from the sheet; whole bodies are recorded, and compared in test_unseen_client.
"""

import re

import pytest

from fluxplane.wire import Secret
from tests.fluxplane.conftest import FOUNDRY, USER, Caller, World
from tests.furniture import recorded

GRANT = f"/api/cli/v1/projects/{FOUNDRY}/db-access/temporary-credential"
PLAN = f"/api/cli/v1/projects/{FOUNDRY}/db-access"


@pytest.fixture
async def ada(world18: World):
    async with world18.serving(contract_only=True) as caller:
        yield caller


async def v1_project(world: World, hash_: str = "abc1234", slug: str = "acme") -> None:
    from fluxplane import catalogue, registry

    async with catalogue.connect(world.settings) as store:
        if await registry.find_project(store, USER, hash_) is None:
            await registry.create_project(
                store,
                world.settings,
                registry.NewProject(
                    user=USER,
                    slug=slug,
                    mode="v1_dedicated",
                    hash=hash_,
                    postgres_url=Secret(f"postgres://postgres:pw%2Fx@127.0.0.1:{world.server.port}/postgres"),
                ),
            )


async def test_v2_plan_has_the_notes_that_the_sheet_leaves_open(ada: Caller):
    notes = (await ada.get(PLAN)).body["securityNotes"]
    assert len(notes) >= 2
    assert all(isinstance(note, str) for note in notes)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("localPort=15433", {"recommendedLocalPort": 15433}),
        ("localPort=abc", {}),
        ("localPort=80abc", {"recommendedLocalPort": 80}),
        ("localPort=0", {}),
        ("localPort=-5", {}),
        ("localPort=99999", {}),
        ("sshPort=NaN", {}),
        (
            "sshHost=bastion.example&sshUser=dev&sshPort=2222",
            {"sshHost": "bastion.example", "sshUser": "dev", "sshPort": 2222},
        ),
    ],
)
async def test_the_query_only_overrides_what_is_echoed(ada: Caller, query: str, expected: dict):
    plan = await ada.get(f"{PLAN}?{query}")
    assert plan.body["tunnel"] == recorded.body("plan v2")["tunnel"] | expected


@pytest.mark.parametrize("query", ["sshHost=-oProxyCommand%3Dx", "sshHost=a%20b", "sshUser=%24(id)", "sshUser=-l"])
async def test_an_ssh_host_that_could_be_an_option_or_a_command_is_refused(ada: Caller, query: str):
    assert (await ada.get(f"{PLAN}?{query}")).status == 400


# ------------------------------------------------------------ bodies that are no bodies

READONLY = [
    b"",
    b"{}",
    b"null",
    b"not json",
    b"\xff\xfe",
    b"[]",
    b"7",
    b'"readonly"',
    b"[" * 50_000,
    b'{"access":""}',
    b'{"access":"  READONLY "}',
    b'{"access":null}',
    b'{"access":"readonly","ttlSeconds":null}',
    b'{"access":"readonly","ttlSeconds":"600"}',
    b'{"access":"readonly","ttlSeconds":true}',
    b'{"access":"readonly","ttlSeconds":1e999}',
    b'{"access":"readonly","ttlSeconds":NaN}',
    b'{"access":"readonly","ttlSeconds":60.9}',
    b'{"access":"readonly","ttlSeconds":28800}',
    b'{"access":"readonly","unknown":{"deep":[1,2]}}',
]
REFUSED = [
    (b'{"access":"admin"}', 400),
    (b'{"access":5}', 400),
    (b'{"access":["readonly"]}', 400),
    (b'{"access":{}}', 400),
    (b'{"access":false}', 400),
    (b'{"access":"readwrite"}', 403),
    (b'{"access":"readonly","ttlSeconds":0}', 400),
    (b'{"access":"readonly","ttlSeconds":-1}', 400),
    (b'{"access":"readonly","ttlSeconds":0.5}', 400),
    (b'{"access":"readonly","ttlSeconds":28801}', 400),
    (b'{"access":"readonly","ttlSeconds":1' + b"0" * 400 + b"}", 400),
]


@pytest.mark.parametrize("body", READONLY, ids=lambda body: body[:40].decode(errors="replace"))
async def test_a_body_that_says_nothing_else_asks_for_readonly(ada: Caller, body: bytes):
    answer = await ada.post(GRANT, data=body)
    assert (answer.status, answer.body.get("access")) == (200, "readonly")


@pytest.mark.parametrize(("body", "status"), REFUSED)
async def test_a_body_that_asks_for_what_cannot_be_is_refused(ada: Caller, body: bytes, status: int):
    answer = await ada.post(GRANT, data=body)
    assert answer.status == status
    assert isinstance(answer.body["error"], str)


# ------------------------------------------------------------------ the order of checks


def path(hash_: str) -> str:
    return f"/api/cli/v1/projects/{hash_}/db-access/temporary-credential"


ORDER = [
    ("access before hash", "nothex!", b'{"access":"x"}', 400, "access"),
    ("readwrite before ttl", FOUNDRY, b'{"access":"readwrite","ttlSeconds":-1}', 403, "disabled"),
    ("readwrite before hash", "nothex!", b'{"access":"readwrite"}', 403, "disabled"),
    ("ttl before hash", "nothex!", b'{"ttlSeconds":-1}', 400, "ttlSeconds"),
    ("hash before ownership", "nothex!", b"{}", 400, "hash"),
    ("ownership", "fffffff", b"{}", 404, "not found"),
    ("mode last", "abc1234", b"{}", 400, "v2_shared"),
]


@pytest.mark.parametrize(("name", "hash_", "body", "status", "says"), ORDER, ids=[row[0] for row in ORDER])
async def test_checks_come_in_the_contracts_order(ada, world18, name, hash_, body, status, says):
    await v1_project(world18)
    answer = await ada.post(path(hash_), data=body)
    assert answer.status == status
    assert says in answer.body["error"]


async def test_the_token_comes_before_everything(world18: World, ada: Caller):
    stranger = Caller(ada.base, ada.http, None)
    answer = await stranger.post(path("nothex!"), data=b'{"access":"x"}')
    assert (answer.status, answer.body) == (401, {"error": "Unauthorized"})


TOKENS = [
    "Bearer",
    "Bearer ",
    "Basic abc",
    "Bearer flx_live_0123456789abcdef0123456789abcdef_33b0",  # well formed, unknown
    "Bearer flx_live_0123456789abcdef0123456789abcdef_0000",  # wrong checksum
    "Bearer flx_mcp_0123456789ab_0123456789abcdef0123_0000",
    "Bearer " + "x" * 5000,
    "flx_live_0123456789abcdef0123456789abcdef_33b0",
]


@pytest.mark.parametrize("header", TOKENS, ids=lambda header: header[:40])
async def test_every_wrong_token_is_the_same_401(ada: Caller, header: str):
    stranger = Caller(ada.base, ada.http, None)
    answer = await stranger.get("/api/cli/v1/auth/verify", headers={"Authorization": header})
    assert (answer.status, answer.body) == (401, {"error": "Unauthorized"})


@pytest.mark.parametrize("style", ["Bearer {}", "bearer {}", "BEARER   {}", "Bearer {} trailing", "Bearer\t{}"])
async def test_bearer_is_read_as_the_contract_reads_it(ada: Caller, world18: World, style: str):
    stranger = Caller(ada.base, ada.http, None)
    for token in (world18.token.reveal(), world18.token.reveal().upper().replace("FLX_LIVE", "flx_live")):
        answer = await stranger.get("/api/cli/v1/auth/verify", headers={"Authorization": style.format(token)})
        assert answer.status == 200


@pytest.mark.parametrize("hash_", ["5774112", "%205774112%20"])
async def test_a_hash_is_trimmed_and_lower_cased(ada: Caller, hash_: str):
    answer = await ada.get(f"/api/cli/v1/projects/{hash_}")
    assert answer.status == 200
    assert answer.body["hash"] == FOUNDRY


async def test_upper_case_hashes_are_found(ada: Caller):
    assert (await ada.get("/api/cli/v1/projects/0A1B2C3")).body["slug"] == "neighbour"


async def test_the_list_is_a_bare_array_sorted_by_slug(ada: Caller, world18: World):
    await v1_project(world18)
    answer = await ada.get("/api/cli/v1/list")
    slugs = [project["slug"] for project in answer.body]
    assert slugs == sorted(slugs)
    assert {"acme", "foundry", "neighbour"} <= set(slugs)
    foundry = next(project for project in answer.body if project["slug"] == "foundry")
    assert foundry == {
        "slug": "foundry",
        "hash": FOUNDRY,
        "status": "running",
        "apiUrl": f"https://api--foundry--{FOUNDRY}.vsl-base.com",
        "lifecycleState": "active",
    }


async def test_activity_is_newest_first_and_limited(ada: Caller):
    await ada.post(GRANT, data=b'{"ttlSeconds":60}')
    answer = await ada.get(f"/api/cli/v1/projects/{FOUNDRY}/activity?limit=1")
    assert (answer.body["projectSlug"], answer.body["hash"]) == ("foundry", FOUNDRY)
    (event,) = answer.body["events"]
    assert set(event) == {"id", "projectId", "userId", "kind", "summary", "metadata", "createdAt"}
    assert event["kind"] == "db.temp_credential_issued"
    assert event["metadata"] == {"access": "readonly", "ttlSeconds": 60}
    everything = await ada.get(f"/api/cli/v1/projects/{FOUNDRY}/activity?limit=99999")
    assert 1 <= len(everything.body["events"]) <= 100


async def test_health_and_version_need_no_token(ada: Caller):
    stranger = Caller(ada.base, ada.http, None)
    assert (await stranger.get("/api/health")).status == 200
    assert re.fullmatch(r"\d+\.\d+\.\d+", (await stranger.get("/api/install/cli/version")).body["version"])


@pytest.mark.parametrize(
    ("method", "where", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/api/cli/v1/nothing", 404),
        ("PUT", "/api/cli/v1/list", 405),
        ("GET", "/api/cli/v1/projects/zzzzzzz/db-access", 400),
        ("GET", "/api/cli/v1/projects/577411/db-access", 400),
        ("GET", "/api/cli/v1/projects/57741122/db-access", 400),
        ("GET", "/api/cli/v1/projects/%00%00/db-access", 400),
        ("GET", "/api/cli/v1/projects/5774112%0a/credentials", 200),
        ("GET", "/api/cli/v1/projects/aaaaaaa", 404),
        ("GET", "/api/cli/v1/projects/aaaaaaa/credentials", 404),
        ("GET", "/api/cli/v1/projects/aaaaaaa/activity", 404),
    ],
)
async def test_every_error_is_json_with_a_string(ada: Caller, method: str, where: str, status: int):
    answer = await ada.ask(method, where)
    assert answer.status == status
    if status >= 400:
        assert isinstance(answer.body["error"], str)


async def test_a_body_too_large_is_413_and_json(ada: Caller):
    answer = await ada.post(GRANT, data=b"x" * 200_000)
    assert answer.status == 413
    assert isinstance(answer.body["error"], str)


EXTENSIONS = [
    ("GET", f"/api/cli/v1/projects/{FOUNDRY}/db-access/temporary-credentials"),
    ("POST", f"/api/cli/v1/projects/{FOUNDRY}/db-access/tunnel-events"),
    ("DELETE", "/api/cli/v1/grants/" + "0" * 32),
    ("POST", f"/api/cli/v1/grants/{'0' * 32}/renew"),
    ("GET", "/api/cli/v1/audit"),
]


@pytest.mark.parametrize(("method", "where"), EXTENSIONS)
async def test_contract_only_has_no_extension_routes(ada: Caller, method: str, where: str):
    assert (await ada.ask(method, where)).status == 404


async def test_contract_only_does_not_know_grant_ids(ada: Caller):
    same = {"headers": {"Idempotency-Key": "ab" * 16}}
    first, second = await ada.post(GRANT, data=b"{}", **same), await ada.post(GRANT, data=b"{}", **same)
    assert first.body["username"] != second.body["username"]


async def test_another_users_project_is_not_found(ada: Caller, world18: World):
    from fluxplane import catalogue, registry

    async with catalogue.connect(world18.settings) as store:
        await registry.create_user(store, "eve@example.test", cli_role="admin", ensure=True)
        eve = Caller(ada.base, ada.http, await registry.create_token(store, "eve@example.test"))
    for where in ("", "/db-access", "/credentials", "/activity"):
        assert (await eve.get(f"/api/cli/v1/projects/{FOUNDRY}{where}")).status == 404
    assert (await eve.mint(FOUNDRY)).status == 404
