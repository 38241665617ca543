"""
What the control plane says: the HTTP contract's bodies, as types.

Answers are open (unknown fields are dropped: they only grow), requests are too, since the contract's are. Every name is
camelCase on the wire and snake_case here. Fields that the existing platform never sends (our extensions) are optional.
A plan comes from another machine, so everything that later reaches a shell, an argv or a socket is held to a pattern.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

T = TypeVar("T")

Mode = Literal["v1_dedicated", "v2_shared"]
Access = Literal["readonly", "readwrite"]

V1: Final = "v1_dedicated"
V2: Final = "v2_shared"

HASH_PATTERN: Final = r"^[a-f0-9]{7}$"
GRANT_ID_PATTERN: Final = r"^[a-f0-9]{32}$"
# Container names, DNS names, IPv4 and IPv6 literals; never a leading dash, never a blank or a quote.
HOST_PATTERN: Final = r"^[A-Za-z0-9:][A-Za-z0-9._:-]{0,252}$"
IDENTIFIER_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]{0,62}$"

Hash = Annotated[str, msgspec.Meta(pattern=HASH_PATTERN)]
HostName = Annotated[str, msgspec.Meta(pattern=HOST_PATTERN)]
# `sshHost` may be empty: then there is nowhere to tunnel to, and the client says so.
MaybeHostName = Annotated[str, msgspec.Meta(pattern=r"^(?:[A-Za-z0-9:][A-Za-z0-9._:-]{0,252})?$")]
SSHUser = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$")]
Identifier = Annotated[str, msgspec.Meta(pattern=IDENTIFIER_PATTERN)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
# One line of text for people: no control characters that could repaint a terminal.
Line = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", max_length=4096)]

# What a plane that has our extensions lists in its plan, and the meaning of each.
EXTENSIONS: Final = ("renew", "revoke", "grant_id", "audit", "host_keys", "rls_tables", "backup_jobs", "restores")


class Secret:
    """
    A string that must not be seen. `repr`, `str` and every log line show ``Secret('…')``.

    `reveal` is the one way to the text, and the one word to grep for.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret('…')"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Secret is not pickled")


class Body(msgspec.Struct, frozen=True, rename="camel", omit_defaults=False, kw_only=True):
    """A JSON object of the contract: camelCase, open to fields that are not known yet."""


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Every error: `error` always, `code` sometimes; 429 adds the three others."""

    error: str
    code: str | None = None
    tier: str | None = None
    limit: int | None = None
    retry_after_sec: int | None = msgspec.field(default=None, name="retryAfterSec")


class Capabilities(Body, frozen=True, kw_only=True):
    tunnel: bool
    gui_config: bool
    shell: bool
    dump: bool
    restore: bool
    readonly: bool
    readwrite: bool
    temporary_credentials: bool


class DedicatedDatabase(Body, frozen=True, kw_only=True):
    database_name: Literal["postgres"]
    username: Identifier
    internal_host: HostName
    internal_port: Port
    container_name: HostName
    docker_network_name: HostName
    ssl_mode: Literal["disable"]


class PooledDatabase(Body, frozen=True, omit_defaults=True, kw_only=True):
    database_name: Literal["postgres"]
    internal_host: HostName
    internal_port: Port
    ssl_mode: Literal["disable"]
    search_path: list[Identifier]
    container_name: HostName | None = None


class SSHTarget(Body, frozen=True, kw_only=True):
    ssh_host: MaybeHostName
    ssh_user: SSHUser
    ssh_port: Port
    recommended_local_host: Literal["127.0.0.1"]
    recommended_local_port: Port


class _Plan(Body, frozen=True, omit_defaults=True, kw_only=True):
    supported: bool
    project_name: Line
    project_hash: Hash
    engine: Literal["postgres"]
    transport: Literal["ssh_tunnel"]
    tunnel: SSHTarget
    capabilities: Capabilities
    # Our extensions; the existing platform sends none of them.
    extensions: list[str] = []
    # OpenSSH public key lines ("ssh-ed25519 AAAA…"), without host name or comment.
    host_keys: list[Line] = []
    project_id: str | None = None
    # "schema.table" of tables whose rows a policy hides from this access.
    rls_tables: list[Line] = []

    def __post_init__(self) -> None:
        if self.supported is not True:
            raise ValueError("`supported` must be true")


class DedicatedPlan(_Plan, frozen=True, tag_field="mode", tag=V1, omit_defaults=True, kw_only=True):
    """`GET …/db-access` of a v1 project."""

    scope: Literal["whole_database"]
    database: DedicatedDatabase
    credential_strategy: Literal["project_postgres_password", "readonly_project_password"]


class PooledPlan(_Plan, frozen=True, tag_field="mode", tag=V2, omit_defaults=True, kw_only=True):
    """`GET …/db-access` of a v2 project."""

    scope: Literal["tenant_schema"]
    tenant_schema: Identifier
    database: PooledDatabase
    credential_strategy: Literal["temporary_project_scoped_role"]
    default_access: Literal["readonly"]
    security_notes: list[Line]


AccessPlan = DedicatedPlan | PooledPlan


class GrantRequest(Body, frozen=True, omit_defaults=True, kw_only=True):
    """
    `POST …/db-access/temporary-credential`, as fluxd sends it.

    `grant_id` (32 hex digits, 128 random bits, also sent as `Idempotency-Key`) goes only to a plane that lists the
    extension: asking twice with the same id answers the same role and password.
    """

    access: Access
    ttl_seconds: int | None = None
    grant_id: str | None = None
    reason: str | None = None


class Grant(Body, frozen=True, omit_defaults=True, kw_only=True):
    """
    The control plane's answer: a temporary role, its password, and until when.

    `expires_at` is any string a date parser reads (ISO 8601 from every known plane). Extensions: `expires_in` is the
    seconds left when the answer was made, `max_expires_in` those until the end no renewal passes.
    """

    username: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
    password: Secret
    access: Access
    expires_at: Line
    tenant_schema: Identifier
    search_path: list[Identifier]
    grant_id: str | None = None
    expires_in: float | None = None
    max_expires_in: float | None = None
    rls_tables: list[Line] = []
    # What a pool that its operator has not closed leaves open to this role, for people.
    not_enforced: list[Line] = []


class Renewed(Body, frozen=True, omit_defaults=True, kw_only=True):
    """`POST /api/cli/v1/grants/{grant_id}/renew` (extension): the same role, a later end."""

    grant_id: str
    username: str
    access: Access
    expires_at: Line
    expires_in: float
    max_expires_in: float


class Revoked(Body, frozen=True, omit_defaults=True, kw_only=True):
    """`DELETE /api/cli/v1/grants/{grant_id}` (extension): `ended`: the role is gone; `tombstone`: it never was."""

    grant_id: str
    state: Literal["ended", "ending", "tombstone"]


class LiveCredential(Body, frozen=True, omit_defaults=True, kw_only=True):
    """One row of `GET …/db-access/temporary-credentials` (extension): never a password."""

    grant_id: str | None
    username: str
    access: Access
    state: Literal["minting", "live", "ending"]
    created_at: str
    expires_at: str


class DedicatedCredentials(Body, frozen=True, tag_field="mode", tag=V1, omit_defaults=True, kw_only=True):
    """`GET …/credentials` of a v1 project: the whole-database password, revealed by explicit command."""

    slug: Line
    hash: Hash
    postgres_connection_string: Secret
    anon_key: Secret | None = None
    service_role_key: Secret | None = None
    project_jwt_secret: Secret | None = None


class PooledCredentials(Body, frozen=True, tag_field="mode", tag=V2, omit_defaults=True, kw_only=True):
    """`GET …/credentials` of a v2 project: never any Postgres credential."""

    slug: Line
    hash: Hash
    project_jwt_secret: Secret | None = None
    note: Line | None = None


Credentials = DedicatedCredentials | PooledCredentials


class Project(Body, frozen=True, omit_defaults=True, kw_only=True):
    """`GET …/projects/{hash}`."""

    slug: Line
    hash: Hash
    mode: Mode
    api_schema: str | None = None
    description: str | None = None
    brief: str | None = None


class ListedProject(Body, frozen=True, omit_defaults=True, kw_only=True):
    """One element of `GET …/list`, which answers a bare array sorted by slug."""

    slug: Line
    hash: Hash
    # "running", "stopped", "partial", "missing" or "corrupted"; a word we do not know is shown as it came.
    status: Line
    api_url: str | None = None
    lifecycle_state: str | None = None
    mode: str | None = None  # extension


class ActivityEvent(Body, frozen=True, kw_only=True):
    id: str
    project_id: str
    user_id: str | None
    kind: Line
    summary: Line
    metadata: dict[str, Any]
    created_at: Line


class Activity(Body, frozen=True, kw_only=True):
    """`GET …/projects/{hash}/activity`: newest first."""

    project_slug: Line
    hash: Hash
    events: list[ActivityEvent]


class Verified(Body, frozen=True, omit_defaults=True, kw_only=True):
    """`GET …/auth/verify`."""

    ok: bool
    user: Line
    plan: str | None = None
    default_mode: str | None = None
    cli_role: str | None = None


class Backup(Body, frozen=True, omit_defaults=True, kw_only=True):
    """
    One backup of `GET …/backups` (contract §2.6). What is not known is absent, never null.

    From another plane every word of it is taken as it comes; only what is opened or shown is held to a pattern.
    Extension: `error`, why the dump failed.
    """

    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    format: Line
    status: Literal["queued", "running", "complete", "failed"]
    kind: Literal["project_db", "tenant_export"] | None = None
    primary_artifact_relative_path: Line | None = None
    primary_artifact_absolute_path: Line | None = None
    size_bytes: Annotated[int, msgspec.Meta(ge=0)] | None = None
    checksum_sha256: Annotated[str, msgspec.Meta(pattern=r"^[a-f0-9]{64}$")] | None = msgspec.field(
        default=None, name="checksumSha256"
    )
    created_at: Line | None = None
    completed_at: Line | None = None
    local_artifact_status: Literal["present", "missing"] | None = None
    offsite_status: Line | None = None
    offsite_provider: Line | None = None
    offsite_key: Line | None = None
    offsite_completed_at: Line | None = None
    offsite_size_bytes: Annotated[int, msgspec.Meta(ge=0)] | None = None
    offsite_content_sha256: Line | None = msgspec.field(default=None, name="offsiteContentSha256")
    offsite_error: str | None = None
    artifact_validation_status: Literal["pending", "artifact_valid", "artifact_invalid"] | None = None
    artifact_validation_at: Line | None = None
    artifact_validation_error: str | None = None
    restore_verification_status: Literal["pending", "restore_verified", "restore_failed", "skipped"] | None = None
    restore_verification_at: Line | None = None
    restore_verification_error: str | None = None
    error: str | None = None


class BackupList(Body, frozen=True, omit_defaults=True, kw_only=True):
    """`GET …/backups`: newest first. Only `backups` is required of a plane."""

    backups: list[Backup]
    backup_volume_absolute_root: Line | None = None
    reconciled_at: Line | None = None
    platform_minimum_backup_freshness: dict[str, Any] | None = None


class BackupMade(Body, frozen=True, omit_defaults=True, kw_only=True):
    """`POST …/backups`: 200 and complete; or with `?wait=0` (extension) 202 and running."""

    backup: Backup
    platform_minimum_backup_freshness: dict[str, Any] | None = None


class BackupVerified(Body, frozen=True, kw_only=True):
    """`POST …/backups/{id}/verify`: 200; or with `?wait=0` (extension) 202 and `pending`."""

    ok: bool
    backup_id: str
    restore_verification_status: Line


class BackupProgress(Body, frozen=True, omit_defaults=True, kw_only=True):
    """
    One line of `GET …/backups/{id}/progress` (extension, NDJSON); the last one has `done`, and in `error` why a
    verification failed, or could not be run.
    """

    backup_id: str
    phase: Line | None
    bytes: int
    done: bool
    backup: Backup | None = None
    error: str | None = None


class RestoreAsked(Body, frozen=True, omit_defaults=True, kw_only=True):
    """`POST …/restores` (extension): may this project's database be overwritten?"""

    acknowledged: bool = False
    skip_backup_check: bool = False
    reason: str | None = None


class RestoreAllowed(Body, frozen=True, omit_defaults=True, kw_only=True):
    """Its 200; a refusal is 412 with the classification as `code`."""

    restore_id: str
    ground: Line
    classification: Line | None = None


class RestoreEnded(Body, frozen=True, omit_defaults=True, kw_only=True):
    """`POST …/restores/{id}` (extension): how it went, for the audit."""

    outcome: Literal["ok", "failed"]


class TunnelReport(Body, frozen=True, omit_defaults=True, kw_only=True):
    """`POST …/db-access/tunnel-events` (extension): what fluxd tells the audit about a tunnel."""

    event: Literal["opened", "closed"]
    access: Access
    tunnel_id: str
    grant_id: str | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    reason: str | None = None


class AuditEvent(Body, frozen=True, omit_defaults=True, kw_only=True):
    """One row of `GET /api/cli/v1/audit` (extension). It has no field a secret could stand in."""

    id: str
    at: str
    event: str
    outcome: Literal["intent", "ok", "refused", "failed"]
    hash: str | None = None
    project_id: str | None = None
    mode: str | None = None
    access: str | None = None
    actor: str | None = None
    token_id: str | None = None
    source_address: str | None = None
    reason: str | None = None
    request_id: str | None = None
    grant_id: str | None = None
    username: str | None = None
    ttl_seconds: int | None = None
    expires_at: str | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None


def _encode_secret(value: Any) -> Any:
    if isinstance(value, Secret):
        return value.reveal()
    raise NotImplementedError(f"no JSON for {type(value).__name__}")


def _decode_secret(kind: type, value: Any) -> Any:
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise msgspec.ValidationError("expected a string")


def encode(body: Any) -> bytes:
    """JSON of a wire struct, secrets in clear: only ever for a socket, never for a log."""
    return msgspec.json.encode(body, enc_hook=_encode_secret)


def decode(data: bytes, kind: type[T]) -> T:
    """
    A wire struct from JSON.

    Raises:
        msgspec.DecodeError: not JSON, or (ValidationError, its subclass) not of this shape. The text names the field
            and never holds its value.
    """
    return msgspec.json.decode(data, type=kind, dec_hook=_decode_secret)
