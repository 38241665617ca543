"""
What fluxd says on its Unix socket: structs and error bodies. The one local contract; openapi.json is made from it.

Requests are closed (an unknown field is a mistake worth telling), answers are open: they only grow. Instants are
RFC 3339 in UTC, durations are seconds and end in ``_s``, bytes count what clients sent (``up``) and received
(``down``).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec

from fluxd.core.errors import FluxError
from fluxplane.wire import (
    HASH_PATTERN,
    Access,
    Activity,
    AuditEvent,
    Backup,
    BackupList,
    BackupMade,
    BackupProgress,
    BackupVerified,
    Credentials,
    ListedProject,
    Mode,
    Project,
    RestoreAllowed,
    Secret,
    decode,
    encode,
)

__all__ = [
    "Access",
    "Activity",
    "AuditEvent",
    "Backup",
    "BackupList",
    "BackupMade",
    "BackupProgress",
    "BackupVerified",
    "Credentials",
    "ListedProject",
    "Mode",
    "Project",
    "RestoreAllowed",
    "Secret",
    "decode",
    "encode",
]

API_VERSION: Final = "1"

TunnelState = Literal["opening", "up", "reconnecting", "closing", "closed", "failed"]
HostState = Literal["idle", "connecting", "up", "waiting"]

HashText = Annotated[str, msgspec.Meta(pattern=HASH_PATTERN, description="project hash, 7 hex digits")]
SlugText = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,127}$", description="project slug")]
# Checked before any ssh_config is read: asyncssh runs `Match exec` in a shell.
SSHWord = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,252}$")]
Sequence = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
ActivityLimit = Annotated[int, msgspec.Meta(ge=1, le=100)]
PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65535)]
AbsolutePath = Annotated[str, msgspec.Meta(pattern=r"^/[^\x00]{0,4095}$")]
Text = Annotated[str, msgspec.Meta(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client may send. An unknown field is refused."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What fluxd answers. Clients drop what they do not know."""


# ------------------------------------------------------------------ requests


class Plane(Request, frozen=True, omit_defaults=True):
    """
    Which control plane, and the token the caller's shell has *for that base*.

    Without `token` fluxd looks, for that base only, into its own environment, the system keyring and (default base
    only) the existing CLI's config file. A token sent here stays in memory.
    """

    api_base: Annotated[str, msgspec.Meta(max_length=2048)] | None = None
    token: Secret | None = None


class Passphrase(Request, frozen=True):
    """Of an encrypted key: `file` is what a `ssh_key_encrypted` has named as its detail."""

    file: AbsolutePath
    passphrase: Secret


class SSH(Request, frozen=True, omit_defaults=True):
    """The shell's SSH identity; each field wins over the plan's. Paths are absolute and owned by the caller's uid."""

    host: SSHWord | None = None
    user: SSHWord | None = None
    port: PortNumber | None = None
    agent: AbsolutePath | None = None
    identity_file: AbsolutePath | None = None
    # Kept in memory for the daemon's life, so that each is sent once.
    passphrases: Annotated[tuple[Passphrase, ...], msgspec.Meta(max_length=16)] = ()
    known_hosts: AbsolutePath | None = None
    # FLUX_DB_TUNNEL_PREFER_NETWORK: the docker network to take an address from when a container is on several.
    prefer_network: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,252}$")] | None = None
    # From DOCKER_HOST=ssh://…: these count only where the plan names nothing.
    docker_host: Annotated[str, msgspec.Meta(max_length=1024)] | None = None


class OpenTunnel(Request, frozen=True, omit_defaults=True):
    """`POST /v1/tunnels`. See `credential` and `hold` in the field comments."""

    hash: HashText
    # Only a label to check against the plan's name; the hash decides.
    project: SlugText | None = None
    access: Access = "readonly"
    # "new": mint a role for this caller and show its password this once. "keep": mint only if there is none.
    credential: Literal["new", "keep"] = "keep"
    # True: answer a `hold` id; `GET /v1/events?hold=<id>` must start within 5 s, and its end ends the caller's grant.
    hold: bool = False
    local_port: PortNumber | None = None
    strict_port: bool = False
    # Only loopback addresses are bound.
    local_host: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    ttl_s: Annotated[int, msgspec.Meta(ge=1, le=28800)] | None = None
    # Renew by itself while clients are connected, up to the plane's limit.
    renew: bool = False
    reason: Text | None = None
    plane: Plane = Plane()
    ssh: SSH = SSH()


class MintGrant(Request, frozen=True, omit_defaults=True):
    """`POST /v1/grants/{hash}`: a bare grant, without a tunnel; it ends at its expiry or by closing the project."""

    access: Access = "readonly"
    ttl_s: Annotated[int, msgspec.Meta(ge=1, le=28800)] | None = None
    reason: Text | None = None
    plane: Plane = Plane()


class RenewTunnel(Request, frozen=True, omit_defaults=True):
    """`POST /v1/tunnels/{id}/renew`."""

    ttl_s: Annotated[int, msgspec.Meta(ge=1, le=28800)] | None = None
    plane: Plane = Plane()


class Login(Request, frozen=True):
    """`PUT /v1/login`: checked against the plane, then into the system keyring."""

    token: Secret
    api_base: Annotated[str, msgspec.Meta(max_length=2048)] | None = None


class AskPlane(Request, frozen=True, omit_defaults=True):
    """`POST …/backups`, `POST …/backups/{id}/verify`: nothing but whom to ask."""

    plane: Plane = Plane()


class AskRestore(Request, frozen=True, omit_defaults=True):
    """`POST /v1/projects/{hash}/restores`: may its database be overwritten? The plane decides and records it."""

    acknowledged: bool = False
    skip_backup_check: bool = False
    reason: Text | None = None
    plane: Plane = Plane()


class EndRestore(Request, frozen=True, omit_defaults=True):
    """`POST /v1/projects/{hash}/restores/{id}`: how it went."""

    outcome: Literal["ok", "failed"]
    plane: Plane = Plane()


# ------------------------------------------------------------------- answers


class Problem(Answer, frozen=True, omit_defaults=True):
    """`application/problem+json`. `exit_code` is what a command line client should exit with."""

    status: int
    code: str
    message: str
    exit_code: int
    detail: str | None = None
    hint: str | None = None
    retry_after_s: float | None = None


def problem_of(error: FluxError) -> Problem:
    """*error* as it is said on the socket."""
    return Problem(
        status=error.status,
        code=error.code,
        message=error.message,
        detail=error.detail,
        hint=error.hint,
        exit_code=error.exit_code,
        retry_after_s=error.retry_after_s,
    )


class Lease(Answer, frozen=True):
    """The latest grant's remaining right to exist."""

    expires_at: datetime
    remaining_s: float
    state: Literal["live", "expiring", "over"]
    renewable: bool


class Traffic(Answer, frozen=True):
    """Relays now and since the tunnel was opened; bytes since then."""

    relays: int
    relays_total: int
    bytes_up: int
    bytes_down: int


class Tunnel(Answer, frozen=True):
    id: str
    project: str
    hash: str
    mode: Mode
    access: Access
    state: TunnelState
    host: str
    port: int
    lease: Lease | None
    # Everything a client needs to print a GUI block without a password.
    database: str
    # v1: "postgres". v2: the latest live grant's role, None before there is one.
    username: str | None
    tenant_schema: str | None
    search_path: list[str]
    rls_tables: list[str]
    api_base: str
    account: str
    # "user@host:port" of the SSH host.
    ssh: str
    # "host:port" as the SSH host is asked to reach it; how it was found.
    upstream: str | None
    resolution_method: Literal["getent", "docker_inspect"] | None
    opened_at: datetime
    holds: int
    # False: it lives as long as somebody holds it.
    kept: bool
    grants: int
    traffic: Traffic
    # Things worth saying aloud once: another port than usual, a plane without renew/revoke, …
    notices: list[str]
    problem: Problem | None = None


class Credential(Answer, frozen=True):
    """A temporary role with its password: answered once, to the caller that asked for it."""

    username: str
    password: Secret
    access: Access
    expires_at: datetime
    remaining_s: float
    tenant_schema: str
    search_path: list[str]
    rls_tables: list[str] = []
    grant_id: str | None = None


class TunnelOpened(Answer, frozen=True):
    """`POST /v1/tunnels`: 201 when this call opened the forward, 200 when it was open."""

    tunnel: Tunnel
    credential: Credential | None
    hold: str | None
    # The control plane's plan as it came (camelCase), with `tunnel.recommendedLocalPort` being the real port.
    plan: dict[str, Any]
    notices: list[str]


class TunnelAnswer(Answer, frozen=True):
    tunnel: Tunnel


class TunnelList(Answer, frozen=True):
    tunnels: list[Tunnel]


class TunnelClosed(Answer, frozen=True):
    """
    `DELETE /v1/tunnels/{id}`: `revoked` False when the plane could not be asked yet, or cannot revoke.

    `tunnel` is null where a project had no tunnel open, only bare grants.
    """

    tunnel: Tunnel | None
    revoked: bool
    notices: list[str]


class GrantMinted(Answer, frozen=True):
    credential: Credential
    plan: dict[str, Any]
    notices: list[str]


class PlanAnswer(Answer, frozen=True):
    """`GET /v1/plans/{hash}`: the plan as it came, and the tunnel that is open for it, if one is."""

    plan: dict[str, Any]
    # The forwards of this project that are open now, so that a printed port is the real one.
    tunnels: list[Tunnel]
    # By access, the local port that a tunnel would try first: the project's own, else the lowest that is nobody's.
    # A v1 project's one tunnel is `readwrite`.
    ports: dict[str, int]
    notices: list[str]


class ProjectList(Answer, frozen=True):
    """`GET /v1/projects`: the control plane's own list, wrapped, since a bare array cannot grow."""

    projects: list[ListedProject]


class AuditTrail(Answer, frozen=True):
    """`GET /v1/audit`: what the control plane recorded, newest first."""

    events: list[AuditEvent]


class HostStatus(Answer, frozen=True):
    """One SSH host and its shared connection."""

    host: str
    port: int
    user: str
    state: HostState
    channels: int
    latency_s: float | None
    connected_at: datetime | None
    last_problem: Problem | None
    # "channels": asyncssh's own. A faster data plane would show here.
    data_plane: str


class Status(Answer, frozen=True):
    version: str
    api_version: str
    pid: int
    uptime_s: float
    socket: str
    hosts: list[HostStatus]
    tunnels: int
    relays: int
    # Grants whose end is not confirmed yet.
    revocations_pending: int
    notices: list[str]


class Setting(Answer, frozen=True):
    """One setting of the running daemon. `source`: an environment variable's name, the file's path, or `default`."""

    name: str
    value: str
    source: str


class SettingsAnswer(Answer, frozen=True):
    """`GET /v1/settings`: what the daemon read when it started, or was last told to reload."""

    file: str
    settings: list[Setting]
    # The [[tunnel]]s of the file, as "project (hash)" for people.
    declared: list[str]


class LoginAnswer(Answer, frozen=True):
    api_base: str
    user: str
    plan: str | None
    cli_role: str | None
    # Where the token is now: "keyring", "file" or, after a logout, None.
    stored_in: str | None


class Event(Answer, frozen=True, omit_defaults=True):
    """
    One line of `GET /v1/events`. The first is `snapshot`, with every tunnel asked for; `ping` proves life.

    `seq` grows with every event, across restarts too; `?since=SEQ` goes on after that one.

    `name` is what happened, in past tense: snapshot, opening, up, reconnecting, reconnected, client_connected,
    client_refused, client_left, lease_granted, lease_expiring, lease_renewed, renew_failed, renew_ended, lease_over,
    closing, closed, failed, host_up, host_lost, host_idle, host_failed, ping.
    """

    seq: int
    at: datetime
    name: str
    tunnels: list[Tunnel] | None = None
    tunnel: Tunnel | None = None
    host: HostStatus | None = None
    problem: Problem | None = None
    message: str | None = None


class Health(Answer, frozen=True):
    """`GET /healthz`. `able`: a tunnel could be opened now; `reasons` say why not."""

    alive: bool
    able: bool
    reasons: list[str]


class Check(Answer, frozen=True):
    name: str
    verdict: Literal["ok", "warn", "fail", "skip"]
    message: str
    hint: str | None = None


class Doctor(Answer, frozen=True):
    checks: list[Check]


class UnknownKey(Answer, frozen=True):
    """
    A key that known_hosts does not have, shown by `host`: the one asked about, or a jump host before it.

    `line` is what to append to `file` once a person has compared the fingerprint (``SHA256:…``).
    """

    host: str
    algorithm: str
    fingerprint: str
    line: str
    file: str


class HostKey(Answer, frozen=True):
    """`GET /v1/hosts/key`: null where every host on the way is known."""

    # "user@host:port", as it was asked about.
    host: str
    unknown: UnknownKey | None
