"""What the daemon answers for the contract's two projects: plans as the contract prints them, ids and times fixed."""

from tests.furniture import recorded

PLAN_V1 = recorded.body("plan v1")
PLAN_V2 = {**recorded.body("plan v2"), "rlsTables": ["t_0123456789ab_api.orders"]}
ROLE = recorded.body("grant")["username"]
CREDENTIAL = {
    "username": ROLE,
    "password": "q8sJ3-one-time",
    "access": "readonly",
    "expires_at": "2030-06-01T12:34:56.789Z",
    "remaining_s": 3599.5,
    "tenant_schema": "t_0123456789ab_api",
    "search_path": ["t_0123456789ab_api", "public"],
    "rls_tables": ["t_0123456789ab_api.orders"],
    "grant_id": None,
}
TUNNEL_V1 = {
    "id": "t-3f9a",
    "project": "acme",
    "hash": "abc1234",
    "mode": "v1_dedicated",
    "access": "readwrite",
    "state": "up",
    "host": "127.0.0.1",
    "port": 15433,
    "lease": None,
    "database": "postgres",
    "username": "postgres",
    "tenant_schema": None,
    "search_path": [],
    "rls_tables": [],
    "api_base": "https://flux.vsl-base.com/api",
    "account": "a@b",
    "ssh": "root@203.0.113.7:22",
    "upstream": "172.18.0.5:5432",
    "resolution_method": "docker_inspect",
    "opened_at": "2030-06-01T11:34:56.789Z",
    "holds": 1,
    "kept": False,
    "grants": 0,
    "traffic": {"relays": 2, "relays_total": 5, "bytes_up": 999, "bytes_down": 1_500_000},
    "notices": [],
}
TUNNEL_V2 = {
    **TUNNEL_V1,
    "id": "t-77b0",
    "project": "pooly",
    "hash": "def5678",
    "mode": "v2_shared",
    "access": "readonly",
    "port": 15432,
    "lease": {
        "expires_at": "2030-06-01T12:34:56.789Z",
        "remaining_s": 3599.5,
        "state": "live",
        "renewable": True,
    },
    "username": ROLE,
    "tenant_schema": "t_0123456789ab_api",
    "search_path": ["t_0123456789ab_api", "public"],
    "rls_tables": ["t_0123456789ab_api.orders"],
    "upstream": "flux-postgres-v2:5432",
    "resolution_method": "getent",
    "grants": 1,
    "notices": ["Port 15432 was busy."],
}


def opened(plan, tunnel, credential=None, hold="h1", **more):
    tunnel_part = {**plan["tunnel"], "recommendedLocalPort": tunnel["port"]}
    return {
        "tunnel": tunnel,
        "credential": credential,
        "hold": hold,
        "plan": {**plan, "tunnel": tunnel_part},
        "notices": tunnel["notices"],
        **more,
    }


def plan_answer(plan, *tunnels, ports=None, notices=()):
    return {"plan": plan, "tunnels": list(tunnels), "ports": ports or {}, "notices": list(notices)}


def event(name, **more):
    return {"seq": 1, "at": "2030-06-01T11:34:56.789Z", "name": name, **more}
