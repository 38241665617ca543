"""One example of each body that a client writes or reads most, as the struct itself: it cannot leave the contract."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from fluxd import wire
from fluxd.core.errors import TunnelNotFound

_BASE: Final = "https://flux.example.com/api"
_OPENED: Final = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
_OVER: Final = datetime(2026, 1, 31, 13, 0, tzinfo=UTC)
_ROLE: Final = "flux_temp_ro_5774112_deadbeef"
_SCHEMA: Final = "t_0123456789ab_api"

_TUNNEL: Final = wire.Tunnel(
    id="t-3f9a",
    project="foundry",
    hash="5774112",
    mode="v2_shared",
    access="readonly",
    state="up",
    host="127.0.0.1",
    port=15432,
    lease=wire.Lease(expires_at=_OVER, remaining_s=3600.0, state="live", renewable=True),
    database="postgres",
    username=_ROLE,
    tenant_schema=_SCHEMA,
    search_path=[_SCHEMA, "public"],
    rls_tables=[],
    api_base=_BASE,
    account="ada@example.com",
    ssh="ada@bastion.example.com:22",
    upstream="flux-postgres-v2:5432",
    resolution_method="getent",
    opened_at=_OPENED,
    holds=0,
    kept=True,
    grants=1,
    traffic=wire.Traffic(relays=1, relays_total=3, bytes_up=2048, bytes_down=65536),
    notices=[],
)

_CREDENTIAL: Final = wire.Credential(
    username=_ROLE,
    password=wire.Secret("shown-this-once"),
    access="readonly",
    expires_at=_OVER,
    remaining_s=3600.0,
    tenant_schema=_SCHEMA,
    search_path=[_SCHEMA, "public"],
)

EXAMPLES: Final[Mapping[Any, Any]] = {
    wire.OpenTunnel: wire.OpenTunnel(
        hash="5774112",
        project="foundry",
        credential="new",
        plane=wire.Plane(api_base=_BASE),
        ssh=wire.SSH(host="bastion.example.com", user="ada", agent="/run/user/1000/ssh-agent"),
    ),
    wire.MintGrant: wire.MintGrant(access="readonly", ttl_s=600, plane=wire.Plane(api_base=_BASE)),
    wire.RenewTunnel: wire.RenewTunnel(ttl_s=3600),
    wire.Login: wire.Login(token=wire.Secret("flx_live_…"), api_base=_BASE),
    wire.TunnelAnswer: wire.TunnelAnswer(tunnel=_TUNNEL),
    wire.TunnelList: wire.TunnelList(tunnels=[_TUNNEL]),
    wire.TunnelOpened: wire.TunnelOpened(
        tunnel=_TUNNEL, credential=_CREDENTIAL, hold=None, plan={"mode": "v2_shared"}, notices=[]
    ),
    wire.TunnelClosed: wire.TunnelClosed(tunnel=_TUNNEL, revoked=True, notices=[]),
    wire.GrantMinted: wire.GrantMinted(credential=_CREDENTIAL, plan={"mode": "v2_shared"}, notices=[]),
    wire.Event: wire.Event(seq=1769860800001, at=_OPENED, name="up", tunnel=_TUNNEL),
    wire.Health: wire.Health(alive=True, able=True, reasons=[]),
    wire.Problem: wire.problem_of(TunnelNotFound("No tunnel goes by the name 'foundry'.")),
}
