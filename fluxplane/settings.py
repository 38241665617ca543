"""
Everything the control plane is told from outside, read once into one frozen value.

The names of the environment are the contract's where it has them (FLUX_DB_TUNNEL_SSH_HOST, FLUX_SHARED_POSTGRES_URL,
…), ours begin with FLUXPLANE_. A URL that holds a password may instead stand in a file named by ``<NAME>_FILE``.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from fluxplane.wire import HOST_PATTERN, Secret

DEFAULT_POOL_HOST: Final = "flux-postgres-v2"
DEFAULT_POSTGRES_PORT: Final = 5432
DEFAULT_TENANT_DOMAIN: Final = "vsl-base.com"
MAX_BODY_BYTES: Final = 64 * 1024
_KEY_TYPES: Final = ("ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-")


class OperatorError(Exception):
    """Something the operator can mend; the text says what, and what to do. Never holds a secret."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What one token, user, project or role may use. The rates are the contract's (requests per 60 s and token)."""

    reads_per_minute: int = 120
    sensitive_per_minute: int = 20
    writes_per_minute: int = 30
    audit_per_minute: int = 600
    # Requests without a valid token, by source address.
    anonymous_per_minute: int = 60
    live_roles_per_user: int = 20
    live_roles_per_project: int = 10
    connections_per_role: int = 8
    temp_file_mb_per_role: int = 256
    # Courtesies: the role can lift them.
    statement_timeout_s: int = 900
    idle_in_transaction_timeout_s: int = 300


@dataclasses.dataclass(frozen=True, slots=True)
class BackupSettings:
    """
    Where backups are kept, how long one may take, which are due and which may go; days and counts are the contract's.

    A restore over a v1 project's database wants a verified backup of at most `restore_max_age_s`.
    """

    directory: Path = Path("/srv/flux/backups")
    interval_days: int = 7
    retention_count: int = 4
    retention_days: int = 30
    restore_max_age_s: int = 24 * 3600
    dump_within_s: int = 6 * 3600
    verify_within_s: int = 6 * 3600
    # Where each file is copied to as well; `offsite_strict`: a backup that could not be copied there has failed.
    offsite: Path | None = None
    offsite_strict: bool = False
    offsite_within_s: int = 3600
    # Every hour one project whose newest verified backup is missing or stale is backed up and verified.
    scheduled: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """
    The control plane's settings.

    `catalogue_url` and `pool_url` are the service's own logins (unprivileged); the two admin URLs are a superuser's and
    are needed by `migrate`, `pool prepare`, `project create` and `doctor` only: `serve` runs without them.
    """

    catalogue_url: Secret
    pool_url: Secret | None = None
    # The pool's login that backups read with (BYPASSRLS, pg_read_all_data).
    pool_backup_url: Secret | None = None
    catalogue_admin_url: Secret | None = None
    pool_admin_url: Secret | None = None
    key: Secret | None = None
    key_file: Path | None = None
    ssh_host: str = ""
    ssh_user: str = "root"
    ssh_port: int = 22
    host_keys: tuple[str, ...] = ()
    pool_host: str = DEFAULT_POOL_HOST
    pool_port: int = DEFAULT_POSTGRES_PORT
    pool_container: str | None = DEFAULT_POOL_HOST
    allow_readwrite: bool = False
    contract_only: bool = False
    # Tenants' public API is https://api--<slug>--<hash>.<tenant_domain>, for `list` only.
    tenant_domain: str = DEFAULT_TENANT_DOMAIN
    trusted_proxies: tuple[str, ...] = ()
    limits: Limits = Limits()
    backups: BackupSettings = BackupSettings()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """
        Raises:
            OperatorError: a variable is missing or cannot be understood.
        """
        pool_admin = _secret(environ, "FLUXPLANE_POOL_ADMIN_URL") or _secret(environ, "FLUX_SHARED_POSTGRES_URL")
        pool = _secret(environ, "FLUXPLANE_POOL_URL")
        host, port, container = _pool_target(environ, pool_admin or pool)
        catalogue = _secret(environ, "FLUXPLANE_CATALOGUE_URL")
        if catalogue is None:
            raise OperatorError(
                "FLUXPLANE_CATALOGUE_URL is not set: the control plane needs a Postgres database of its own "
                "(postgresql://fluxplane:…@host:5432/fluxplane)."
            )
        ssh_host, ssh_user, ssh_port = _ssh(environ)
        key_file = _text(environ, "FLUXPLANE_KEY_FILE")
        return cls(
            catalogue_url=catalogue,
            pool_url=pool,
            pool_backup_url=_secret(environ, "FLUXPLANE_POOL_BACKUP_URL"),
            catalogue_admin_url=_secret(environ, "FLUXPLANE_CATALOGUE_ADMIN_URL"),
            pool_admin_url=pool_admin,
            key=Secret(key) if (key := _text(environ, "FLUXPLANE_KEY")) else None,
            key_file=Path(key_file) if key_file else None,
            ssh_host=ssh_host,
            ssh_user=ssh_user,
            ssh_port=ssh_port,
            host_keys=_host_keys(_text(environ, "FLUX_DB_TUNNEL_SSH_HOST_KEYS")),
            pool_host=host,
            pool_port=port,
            pool_container=container,
            allow_readwrite=is_true(environ.get("FLUX_DB_ACCESS_ALLOW_READWRITE")),
            tenant_domain=_text(environ, "FLUXPLANE_TENANT_DOMAIN") or DEFAULT_TENANT_DOMAIN,
            trusted_proxies=tuple(_text(environ, "FLUXPLANE_TRUSTED_PROXIES").replace(",", " ").split()),
            limits=_limits(environ),
            backups=_backups(environ),
        )


def is_true(text: str | None) -> bool:
    """The contract's truth: 1, true or yes, trimmed, in any case."""
    return (text or "").strip().lower() in {"1", "true", "yes"}


def split_url(url: Secret, what: str) -> SplitResult:
    """
    Raises:
        OperatorError: not a postgres URL with a user and a host; the text never shows the URL.
    """
    try:
        parts = urlsplit(url.reveal())
        complete = parts.scheme in {"postgres", "postgresql"} and parts.hostname and parts.username and parts.port != 0
    except ValueError:
        complete = False
    if not complete:
        raise OperatorError(f"{what} must look like postgresql://USER:PASSWORD@HOST:PORT/DATABASE.")
    return parts


def user_of(url: Secret, what: str) -> str:
    return unquote(split_url(url, what).username or "")


def password_of(url: Secret, what: str) -> Secret:
    """
    Raises:
        OperatorError: the URL has no password.
    """
    password = split_url(url, what).password
    if not password:
        raise OperatorError(f"{what} has no password.")
    return Secret(unquote(password))


def database_of(url: Secret, what: str) -> str:
    return unquote(split_url(url, what).path.lstrip("/")) or "postgres"


def in_database(url: Secret, database: str) -> Secret:
    """The same server and login, another database."""
    return Secret(urlsplit(url.reveal())._replace(path="/" + database).geturl())


def _text(environ: Mapping[str, str], name: str) -> str:
    return (environ.get(name) or "").strip()


def _secret(environ: Mapping[str, str], name: str) -> Secret | None:
    if text := _text(environ, name):
        return Secret(text)
    if path := _text(environ, name + "_FILE"):
        try:
            return Secret(Path(path).read_text().strip())
        except OSError as failure:
            raise OperatorError(f"{name}_FILE cannot be read: {failure.strerror}: {path}") from failure
    return None


def _number(environ: Mapping[str, str], name: str, default: int, *, highest: int = 2**31 - 1) -> int:
    text = _text(environ, name)
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,10}", text) or not 1 <= int(text) <= highest:
        raise OperatorError(f"{name} must be a whole number from 1 to {highest}.")
    return int(text)


def _host(name: str, text: str) -> str:
    if text and not re.fullmatch(HOST_PATTERN, text):
        raise OperatorError(f"{name} is not a host name or address.")
    return text


def _ssh(environ: Mapping[str, str]) -> tuple[str, str, int]:
    """Host, user and port of the SSH host: each from its own variable, else from DOCKER_HOST=ssh://[user@]host[:port]."""
    docker = _text(environ, "DOCKER_HOST")
    try:
        parts = urlsplit(docker if docker.startswith("ssh://") else "")
        docker_host, docker_user, docker_port = parts.hostname or "", unquote(parts.username or ""), parts.port or 22
    except ValueError as failure:
        raise OperatorError("DOCKER_HOST cannot be understood: ssh://user@host:port is.") from failure
    host = _host("FLUX_DB_TUNNEL_SSH_HOST", _text(environ, "FLUX_DB_TUNNEL_SSH_HOST") or docker_host)
    user = _text(environ, "FLUX_DB_TUNNEL_SSH_USER") or docker_user or "root"
    return host, user, _number(environ, "FLUX_DB_TUNNEL_SSH_PORT", docker_port, highest=65535)


def _pool_target(environ: Mapping[str, str], url: Secret | None) -> tuple[str, int, str | None]:
    """Where the SSH host finds the pool: the tunnel variables, else the pool's URL, else compose's container name."""
    container = _host("FLUX_SHARED_POSTGRES_TUNNEL_CONTAINER", _text(environ, "FLUX_SHARED_POSTGRES_TUNNEL_CONTAINER"))
    if host := _host("FLUX_SHARED_POSTGRES_TUNNEL_HOST", _text(environ, "FLUX_SHARED_POSTGRES_TUNNEL_HOST")):
        port = _number(environ, "FLUX_SHARED_POSTGRES_TUNNEL_PORT", DEFAULT_POSTGRES_PORT, highest=65535)
        return host, port, container or None
    if url is not None:
        parts = split_url(url, "The pool's URL")
        host = parts.hostname or DEFAULT_POOL_HOST
        return host, parts.port or DEFAULT_POSTGRES_PORT, container or host
    return DEFAULT_POOL_HOST, DEFAULT_POSTGRES_PORT, container or DEFAULT_POOL_HOST


def _host_keys(path: str) -> tuple[str, ...]:
    """Public keys, "type base64" each, from a file of such lines or of known_hosts lines; comments are dropped."""
    if not path:
        return ()
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as failure:
        raise OperatorError(f"FLUX_DB_TUNNEL_SSH_HOST_KEYS cannot be read: {failure.strerror}: {path}") from failure
    return tuple(key for line in lines if (key := _host_key(line)))


def _host_key(line: str) -> str | None:
    words = line.split()
    for kind, blob in itertools.pairwise(words):
        if kind.startswith("#"):
            return None
        if kind.startswith(_KEY_TYPES):
            return f"{kind} {blob}"
    return None


def _backups(environ: Mapping[str, str]) -> BackupSettings:
    default = BackupSettings()
    directory = Path(_text(environ, "FLUX_BACKUPS_LOCAL_DIR") or default.directory)
    if not directory.is_absolute():
        raise OperatorError("FLUX_BACKUPS_LOCAL_DIR must be an absolute path.")
    offsite = Path(text) if (text := _text(environ, "FLUX_BACKUPS_OFFSITE_DIR")) else None
    if offsite is not None and (not offsite.is_absolute() or offsite == directory):
        raise OperatorError("FLUX_BACKUPS_OFFSITE_DIR must be an absolute path, and another one than the local one.")
    return BackupSettings(
        directory=directory,
        offsite=offsite,
        offsite_strict=is_true(environ.get("FLUXPLANE_BACKUPS_OFFSITE_STRICT")),
        offsite_within_s=_number(environ, "FLUXPLANE_BACKUP_OFFSITE_WITHIN_S", default.offsite_within_s),
        interval_days=_number(environ, "FLUX_MIN_BACKUP_INTERVAL_DAYS", default.interval_days),
        retention_count=_number(environ, "FLUX_MIN_BACKUP_RETENTION_COUNT", default.retention_count),
        retention_days=_number(environ, "FLUX_MIN_BACKUP_RETENTION_DAYS", default.retention_days),
        restore_max_age_s=_number(environ, "FLUXPLANE_RESTORE_MAX_BACKUP_AGE_S", default.restore_max_age_s),
        dump_within_s=_number(environ, "FLUXPLANE_BACKUP_WITHIN_S", default.dump_within_s),
        verify_within_s=_number(environ, "FLUXPLANE_BACKUP_VERIFY_WITHIN_S", default.verify_within_s),
        scheduled=is_true(environ.get("FLUXPLANE_BACKUP_SCHEDULE")),
    )


def _limits(environ: Mapping[str, str]) -> Limits:
    """Each limit may be set by FLUXPLANE_LIMIT_<NAME>."""
    return Limits(
        **{
            field.name: _number(environ, "FLUXPLANE_LIMIT_" + field.name.upper(), field.default)
            for field in dataclasses.fields(Limits)
            if isinstance(field.default, int)
        }
    )
