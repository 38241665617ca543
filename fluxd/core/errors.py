"""
Every way it fails: code, message, DETAIL, HINT. The troubleshooting guide as code.

One class per fact a user can meet. `docs/troubleshooting.md` and the client's own table are generated from this file
(`make generate`). `status` is the HTTP status on the socket, `exit_code` what `fluxctl` exits with:

    2 usage · 3 not allowed · 4 not found · 5 the daemon · 6 the control plane · 7 the SSH host · 8 Postgres
    9 the local port · 10 the lease · 11 refused for safety · 12 a local program or file
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

USAGE: Final = 2
NOT_ALLOWED: Final = 3
NOT_FOUND: Final = 4
DAEMON: Final = 5
PLANE: Final = 6
SSH: Final = 7
POSTGRES: Final = 8
PORT: Final = 9
LEASE: Final = 10
REFUSED: Final = 11
LOCAL: Final = 12


class FluxError(Exception):
    """
    Something a user can be told. Subclasses are facts; `summary` is the fact in general, `message` in particular.

    Neither `message` nor `detail` ever holds a secret.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = DAEMON
    summary: ClassVar[str] = "fluxd failed in a way it did not expect."
    hint: str | None = "Please report this with the output of `fluxctl doctor` and the daemon's log."

    def __init__(
        self,
        message: str | None = None,
        *,
        detail: str | None = None,
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.message = message or self.summary
        self.detail = detail
        self.retry_after_s = retry_after_s
        if hint is not None:
            self.hint = hint
        super().__init__(self.message)


# ---------------------------------------------------------------- the request


class BadRequest(FluxError):
    """The request to fluxd is not of the contract's shape."""

    code, status, exit_code = "bad_request", 400, USAGE
    summary = "The request is not what fluxd understands."
    hint = "Check the arguments; `fluxctl --help` lists them. A client of your own: see /openapi.json."


class RouteNotFound(FluxError):
    """Asked for a path that this fluxd does not serve."""

    code, status, exit_code = "route_not_found", 404, DAEMON
    summary = "fluxd has no such route."
    hint = "A newer client than daemon? Restart it: `fluxctl service restart`. The routes: /openapi.json."


class MethodNotAllowed(FluxError):
    code, status, exit_code = "method_not_allowed", 405, DAEMON
    summary = "That route does not take this method."
    hint = "The routes and their methods: /openapi.json."


class BodyTooLarge(FluxError):
    code, status, exit_code = "body_too_large", 413, USAGE
    summary = "The request's body is larger than any request of the contract."
    hint = "A body has at most 64 KiB; see /openapi.json."


class BodyTooSlow(FluxError):
    code, status, exit_code = "body_too_slow", 408, USAGE
    summary = "The request's body did not arrive in time."
    hint = "Send it within 5 s of its headers."


class APIVersionUnsupported(FluxError):
    """The client speaks another version of the socket's contract (`Flux-Api-Version`)."""

    code, status, exit_code = "api_version_unsupported", 400, DAEMON
    summary = "The client and fluxd speak different versions of the socket's contract."
    hint = "Upgrade the older of the two, then restart the daemon: `fluxctl service restart`."


class RequestForbidden(FluxError):
    """A browser, a foreign Host header or another user's process asked."""

    code, status, exit_code = "request_forbidden", 403, REFUSED
    summary = "fluxd answers only local clients of its own user."
    hint = "Use fluxctl, or a client that speaks HTTP on the Unix socket without Origin and Referer headers."


class PathNotAllowed(FluxError):
    """A path in the request is not an absolute file of the caller's own."""

    code, status, exit_code = "path_not_allowed", 400, REFUSED
    summary = "fluxd opens only files that are absolute, exist and belong to you."
    hint = "Name an identity, known_hosts or agent socket of your own by its absolute path (check `ls -l`)."


class TunnelNotFound(FluxError):
    code, status, exit_code = "tunnel_not_found", 404, NOT_FOUND
    summary = "No tunnel goes by that name."
    hint = "`fluxctl tunnel list` shows those that are open; a tunnel is named by id, slug, hash or port."


class TunnelAmbiguous(FluxError):
    code, status, exit_code = "tunnel_ambiguous", 409, USAGE
    summary = "Several tunnels go by that name."
    hint = "Use the id of one of them: `fluxctl tunnel list`."


class TunnelOpenDifferently(FluxError):
    """The forward exists with another SSH host, user, port, local port or local address."""

    code, status, exit_code = "tunnel_open_differently", 409, REFUSED
    summary = "The tunnel is already open in another way than you ask for."
    hint = "Close it first (`fluxctl tunnel close PROJECT`), or ask without the differing option."


class HoldUnknown(FluxError):
    code, status, exit_code = "hold_unknown", 404, NOT_FOUND
    summary = "That hold does not exist or was not taken up in time."
    hint = "A hold must be kept by an events stream within 5 s of opening; open the tunnel again."


# ------------------------------------------------------------------ the daemon


class FluxdNotRunning(FluxError):
    """Client side: nothing answers on the socket, and it could not be started."""

    code, status, exit_code = "fluxd_not_running", 503, DAEMON
    summary = "fluxd is not running and could not be started."
    hint = "Start it by hand to see why: `fluxd`. Its log is named by `fluxctl doctor`."


class ServiceManagerMissing(FluxError):
    """Client side: neither a systemd of this login nor launchd."""

    code, status, exit_code = "service_manager_missing", 501, LOCAL
    summary = "This login has no service manager to install fluxd in."
    hint = "Nothing is needed: commands start fluxd by themselves. With systemd, log in properly (not by `su`) first."


class ServiceFailed(FluxError):
    """Client side: systemctl, launchctl or the journal refuse."""

    code, status, exit_code = "service_failed", 500, LOCAL
    summary = "The service manager refuses."
    hint = "The detail is its own; `fluxctl service status` and `fluxctl service logs` may tell more."


class FluxdAlreadyRunning(FluxError):
    code, status, exit_code = "fluxd_already_running", 409, DAEMON
    summary = "Another fluxd serves this socket."
    hint = "`fluxctl status` talks to it. For a second one set FLUXD_SOCKET to another path."


class SocketUnsafe(FluxError):
    """The socket or its directory could be somebody else's."""

    code, status, exit_code = "socket_unsafe", 500, REFUSED
    summary = "The socket's directory is not private to you."
    hint = "It must be a real directory of your own with mode 0700; remove it, or set FLUXD_SOCKET to a safe path."


class SettingsInvalid(FluxError):
    """The configuration file or a FLUXD_ variable; the detail names file and line."""

    code, status, exit_code = "settings_invalid", 500, LOCAL
    summary = "fluxd's settings are not usable."
    hint = "Mend what the message names; `fluxctl config show` tells where each value comes from."


class ShuttingDown(FluxError):
    code, status, exit_code = "shutting_down", 503, DAEMON
    summary = "fluxd is stopping."
    hint = "Try again in a moment; `fluxctl` starts it anew."


class StateUnreadable(FluxError):
    """The state file is from a newer fluxd, or damaged; it was set aside, never overwritten."""

    code, status, exit_code = "state_unreadable", 500, DAEMON
    summary = "fluxd's state file cannot be read."
    hint = "It was kept beside the new one; ports start afresh from 15432. `fluxctl doctor` names the directory."


class StateUnwritable(FluxError):
    """A disk that is full or read-only. No role is asked for that could not be written down first."""

    code, status, exit_code = "state_unwritable", 500, LOCAL
    summary = "fluxd cannot write its state."
    hint = "Check the disk and the directory that the detail names; nothing was opened."


# ----------------------------------------------------------- token and account


class NotAuthenticated(FluxError):
    """There is no token that belongs to this control plane, or the plane refused it."""

    code, status, exit_code = "not_authenticated", 401, NOT_ALLOWED
    summary = "Not authenticated."
    hint = "Run `fluxctl login`, or set FLUX_API_TOKEN."


class KeyringUnavailable(FluxError):
    code, status, exit_code = "keyring_unavailable", 503, LOCAL
    summary = "The system keyring cannot be used."
    hint = "Unlock it, or set FLUX_API_TOKEN instead; nothing was stored in clear text."


class InsecureAPIBase(FluxError):
    code, status, exit_code = "insecure_api_base", 400, REFUSED
    summary = "A token is never sent over plain http, except to this machine."
    hint = "Use https:// in FLUX_API_BASE."


class BadAPIBase(FluxError):
    code, status, exit_code = "bad_api_base", 400, USAGE
    summary = "The control plane's address is not a URL."
    hint = "Set FLUX_API_BASE to something like https://flux.example.com/api, or unset it for the default."


# ------------------------------------------------------------ the control plane


class PlaneUnreachable(FluxError):
    code, status, exit_code = "plane_unreachable", 502, PLANE
    summary = "The control plane cannot be reached."
    hint = "Check your network and FLUX_API_BASE; `fluxctl doctor` tests each step."


class PlaneAnswerInvalid(FluxError):
    """Not JSON, not the contract's shape, or a value that would be dangerous to use."""

    code, status, exit_code = "plane_answer_invalid", 502, PLANE
    summary = "The control plane's answer does not follow its contract."
    hint = "Check that FLUX_API_BASE names a Flux control plane; if it does, tell its operator."


class PlaneRedirected(FluxError):
    """It redirects to another origin, where our token must not go, or in a way that cannot be followed."""

    code, status, exit_code = "plane_redirected", 502, REFUSED
    summary = "The control plane redirects elsewhere. The token was not sent along."
    hint = "If the control plane has moved, set FLUX_API_BASE to its new address and log in there."


class PlaneRefused(FluxError):
    """A non-2xx answer; the plane's own `error` text is the message."""

    code, status, exit_code = "plane_refused", 502, PLANE
    summary = "The control plane refused."
    hint = "The message is the control plane's own; ask its operator if it does not help."


class PlaneFailed(FluxError):
    code, status, exit_code = "plane_failed", 502, PLANE
    summary = "The control plane failed."
    hint = "Try again; if it lasts, tell its operator the message and the time."


class RateLimited(FluxError):
    code, status, exit_code = "rate_limited", 429, PLANE
    summary = "The control plane asks for a pause."
    hint = "Wait as long as it says, then try again."


class TooManyLiveRoles(FluxError):
    """The plane's cap on live temporary roles, of this account or this project."""

    code, status, exit_code = "too_many_live_roles", 429, PLANE
    summary = "The control plane makes no further temporary role for now."
    hint = "Close tunnels that you no longer need (`fluxctl tunnel list`), or wait until a role expires."


class ProjectNotFound(FluxError):
    code, status, exit_code = "project_not_found", 404, NOT_FOUND
    summary = "The control plane knows no such project of yours."
    hint = "Check the hash (`flux list` shows yours) and that you are logged in with the right account."


class ProjectNotAvailable(FluxError):
    """Dormant, archived, migrating: 409 of the plane."""

    code, status, exit_code = "project_not_available", 409, REFUSED
    summary = "The project is not available for database access now."
    hint = "Wake it in the dashboard, or wait until its migration is over."


class Forbidden(FluxError):
    code, status, exit_code = "forbidden", 403, NOT_ALLOWED
    summary = "The control plane does not allow this."
    hint = "Ask an operator of the platform."


class ReadwriteDisabled(FluxError):
    code, status, exit_code = "readwrite_disabled", 403, NOT_ALLOWED
    summary = "The platform does not allow read/write database access on pooled projects."
    hint = "Use read-only (the default), or ask an operator about FLUX_DB_ACCESS_ALLOW_READWRITE."


class TTLOutOfRange(FluxError):
    code, status, exit_code = "ttl_out_of_range", 400, USAGE
    summary = "A credential lives between 1 second and 8 hours (28800 s)."
    hint = "Give --ttl in seconds, at most 28800."


class GrantFailed(FluxError):
    code, status, exit_code = "grant_failed", 502, PLANE
    summary = "The control plane could not create a temporary role."
    hint = "Try again; if it lasts, tell the platform's operator the message and the time."


class NotSupportedByPlane(FluxError):
    """This control plane has no such extension."""

    code, status, exit_code = "not_supported_by_plane", 501, PLANE
    summary = "This control plane does not offer that."
    hint = "The existing platform cannot renew, revoke or list credentials; they end at their expiry."


class WrongMode(FluxError):
    code, status, exit_code = "wrong_mode", 400, REFUSED
    summary = "That is not possible for a project of this mode."
    hint = "`flux db access-plan` shows the project's mode and what it allows."


class PooledPasswordRefused(WrongMode):
    code, status, exit_code = "pooled_password_refused", 400, REFUSED
    summary = "v2 pooled projects have no long-lived Postgres password to reveal."
    hint = "Run `flux db tunnel` to create a temporary role; its one-time password is in the GUI block."


class SlugMismatch(FluxError):
    """The name typed is not the name the plane has for this hash (fatal only where something is overwritten)."""

    code, status, exit_code = "slug_mismatch", 409, REFUSED
    summary = "That name and that hash belong to different projects."
    hint = "`flux list` shows which belong together."


# ------------------------------------------------------------------ the SSH host


class SSHHostMissing(FluxError):
    code, status, exit_code = "ssh_host_missing", 400, USAGE
    summary = "Nobody says which SSH host to tunnel through."
    hint = "Set FLUX_DB_TUNNEL_SSH_HOST or pass --ssh-host; the platform's plan names none."


class SSHTargetInvalid(FluxError):
    code, status, exit_code = "ssh_target_invalid", 400, USAGE
    summary = "The SSH host, user or port is not one."
    hint = "Check FLUX_DB_TUNNEL_SSH_HOST/USER/PORT and DOCKER_HOST=ssh://user@host:port."


class SSHHostUnresolved(FluxError):
    code, status, exit_code = "ssh_host_unresolved", 502, SSH
    summary = "The SSH host's name has no address."
    hint = "Check FLUX_DB_TUNNEL_SSH_HOST and your DNS (`getent hosts NAME`)."


class SSHUnreachable(FluxError):
    code, status, exit_code = "ssh_unreachable", 502, SSH
    summary = "The SSH host does not answer."
    hint = "Check your network or VPN and FLUX_DB_TUNNEL_SSH_HOST; it may be down or overloaded. See `fluxctl doctor`."


class SSHRefused(FluxError):
    code, status, exit_code = "ssh_refused", 502, SSH
    summary = "The SSH host refuses connections on that port."
    hint = "Check FLUX_DB_TUNNEL_SSH_PORT (default 22) and that sshd runs there."


class SSHHandshakeFailed(FluxError):
    """It answered, but not as an SSH server we can talk with; or it hung up midway (MaxStartups)."""

    code, status, exit_code = "ssh_handshake_failed", 502, SSH
    summary = "The SSH host hung up during the handshake."
    hint = "Try again; if it lasts, sshd may be overloaded (MaxStartups) or something else listens on that port."


@dataclass(frozen=True, slots=True)
class ShownKey:
    """A host's key that known_hosts does not have: `line` is what to append to `file` once it is trusted."""

    host: str
    algorithm: str
    fingerprint: str
    line: str
    file: str


class SSHHostKeyUnknown(FluxError):
    code, status, exit_code = "ssh_host_key_unknown", 502, SSH
    summary = "The SSH host is not known yet."
    hint = "Compare the fingerprint with your operator's, then add the key to known_hosts: `fluxctl host trust HOST`."
    # None where it shows a certificate that nobody known has signed.
    shown: ShownKey | None = None


class SSHHostKeyChanged(FluxError):
    code, status, exit_code = "ssh_host_key_changed", 502, SSH
    summary = "The SSH host's key is not the one you know. Somebody may be listening in."
    hint = "Ask your operator whether the key was changed. Only then: `ssh-keygen -R HOST`, and trust the new one."


class SSHHostKeyRevoked(FluxError):
    code, status, exit_code = "ssh_host_key_revoked", 502, SSH
    summary = "The SSH host's key is marked @revoked in your known_hosts."
    hint = "Do not connect; ask your operator."


class SSHAuthFailed(FluxError):
    """The SSH host answered and refused every key we offered."""

    code, status, exit_code = "ssh_auth_failed", 502, SSH
    summary = "SSH authentication failed."
    hint = "Check FLUX_DB_TUNNEL_SSH_HOST, that your key is loaded (ssh-add -l), and DOCKER_HOST=ssh://… if you set it."


class SSHKeyUnusable(FluxError):
    """An identity file that cannot be read, or is no private key."""

    code, status, exit_code = "ssh_key_unusable", 400, LOCAL
    summary = "The identity file cannot be used."
    hint = "Check the path, and that it is the private key: `ssh-keygen -y -f FILE` reads it too."


class SSHKeyEncrypted(SSHKeyUnusable):
    """
    The host would take this key, but neither an agent nor fluxd's memory opens it; or the passphrase that came along is
    wrong. `detail` is its path, by which `ssh.passphrases` is to name it.
    """

    code, status, exit_code = "ssh_key_encrypted", 400, LOCAL
    summary = "The SSH key is encrypted, and no agent holds it."
    hint = "Load it into your agent (`ssh-add FILE`), or run fluxctl at a terminal: it asks for the passphrase."


class SSHConfigInvalid(FluxError):
    code, status, exit_code = "ssh_config_invalid", 400, LOCAL
    summary = "Your ~/.ssh/config cannot be read."
    hint = "Mend the line that the detail names; `ssh -G HOST` checks it too."


class SSHForwardingRefused(FluxError):
    """open failed: administratively prohibited (RFC 4254 §5.1)."""

    code, status, exit_code = "ssh_forwarding_refused", 502, SSH
    summary = "The SSH host does not allow forwarding to this database."
    hint = "Its operator must allow it for your key: AllowTcpForwarding, and permitopen with this very host:port."


class SSHLost(FluxError):
    code, status, exit_code = "ssh_lost", 502, SSH
    summary = "The connection to the SSH host was lost."
    hint = "fluxd redials by itself; `fluxctl status` shows how it goes."


class SSHBusy(FluxError):
    """MaxSessions, MaxStartups."""

    code, status, exit_code = "ssh_busy", 503, SSH
    summary = "The SSH host has no room for another session."
    hint = "Try again in a moment; its operator may raise MaxSessions or MaxStartups."


# ------------------------------------------------------------- finding upstream


class DockerPermissionDenied(FluxError):
    code, status, exit_code = "docker_permission_denied", 502, SSH
    summary = "The SSH user may not ask docker where the database is."
    hint = (
        "The resolver tries `getent hosts`, then `docker inspect`: ask the operator to allow either for your account."
    )


class DockerUnavailable(FluxError):
    code, status, exit_code = "docker_unavailable", 502, SSH
    summary = "There is no docker to ask on the SSH host."
    hint = "The resolver tries `getent hosts`, then `docker inspect`: the host must answer one of them."


class ContainerNotFound(FluxError):
    code, status, exit_code = "container_not_found", 502, SSH
    summary = "The SSH host knows no container of that name."
    hint = "Is the project running (`flux list`)? Is this the right SSH host (FLUX_DB_TUNNEL_SSH_HOST)?"


class ContainerNotRunning(FluxError):
    code, status, exit_code = "container_not_running", 502, SSH
    summary = "The database's container has no address: it is stopped."
    hint = "Start the project, then try again."


class MultipleAddresses(FluxError):
    code, status, exit_code = "multiple_addresses", 502, SSH
    summary = "The container has several addresses, and none is on a network we know."
    hint = "Set FLUX_DB_TUNNEL_PREFER_NETWORK to the docker network to use."


class ResolverFailed(FluxError):
    code, status, exit_code = "resolver_failed", 502, SSH
    summary = "The SSH host could not tell where the database is."
    hint = "Its answers are in the detail; ask its operator."


# -------------------------------------------------------------------- Postgres


class UpstreamRefused(FluxError):
    code, status, exit_code = "upstream_refused", 502, POSTGRES
    summary = "Nothing listens where the database should be."
    hint = "The database may be restarting; try again in a moment."


class UpstreamUnreachable(FluxError):
    code, status, exit_code = "upstream_unreachable", 502, POSTGRES
    summary = "The database does not answer through the SSH host."
    hint = "The database may be restarting, or the SSH host cannot reach its network; `fluxctl doctor PROJECT` tells."


class UpstreamNotPostgres(FluxError):
    code, status, exit_code = "upstream_not_postgres", 502, POSTGRES
    summary = "What answers there does not speak PostgreSQL."
    hint = "The plan may name a wrong port; tell the platform's operator."


class UpstreamStarting(FluxError):
    """57P03 cannot_connect_now."""

    code, status, exit_code = "upstream_starting", 503, POSTGRES
    summary = "Postgres is starting up or shutting down."
    hint = "Try again in a few seconds."


class UpstreamFull(FluxError):
    """53300 too_many_connections."""

    code, status, exit_code = "upstream_full", 503, POSTGRES
    summary = "Postgres has no connection left."
    hint = "Close idle sessions and try again; on a pooled project ask the operator."


class UpstreamWrongServer(FluxError):
    """Its SCRAM signature does not prove this project's verifier."""

    code, status, exit_code = "upstream_wrong_server", 502, REFUSED
    summary = "The database that answers is not this project's. Nothing was sent to it."
    hint = "Close the tunnel and tell the platform's operator: an address may have been reused."


class UpstreamLoginFailed(FluxError):
    code, status, exit_code = "upstream_login_failed", 502, POSTGRES
    summary = "Postgres refused the temporary role."
    hint = "Try again; if it lasts, tell the platform's operator: the control plane and the pool may disagree."


# -------------------------------------------------------------------- the port


class PortTaken(FluxError):
    code, status, exit_code = "port_taken", 409, PORT
    summary = "The local port is in use."
    hint = "Omit --strict-port to take the next free one from 15432, or pass --local-port."


class NoPortLeft(FluxError):
    code, status, exit_code = "no_port_left", 503, PORT
    summary = "No local port is free up to 65535."
    hint = "Close tunnels, or pass --local-port."


class LocalHostForbidden(FluxError):
    code, status, exit_code = "local_host_forbidden", 400, REFUSED
    summary = "A tunnel listens on loopback only: any other address would show the database to your network."
    hint = "Use 127.0.0.1 (the default), another 127.x.y.z, or ::1."


class TooManyOpenFiles(FluxError):
    code, status, exit_code = "too_many_open_files", 503, LOCAL
    summary = "This machine lets fluxd open no more files."
    hint = "Raise the limit (`ulimit -n`), or close tunnels and idle sessions."


# ------------------------------------------------------------------- the lease


class LeaseOver(FluxError):
    code, status, exit_code = "lease_over", 410, LEASE
    summary = "The temporary credential has ended."
    hint = "Open the tunnel again for a new one."


class RenewLimit(FluxError):
    code, status, exit_code = "renew_limit", 409, LEASE
    summary = "A credential cannot be renewed beyond 8 hours after it was made."
    hint = "Open the tunnel again for a new one."


# --------------------------------------------------------- backups and restores


class BackupNotFound(FluxError):
    code, status, exit_code = "backup_not_found", 404, NOT_FOUND
    summary = "The project has no such backup."
    hint = "`flux backup list` shows those there are; `flux backup create` makes one."


class BackupRunning(FluxError):
    code, status, exit_code = "backup_running", 409, PLANE
    summary = "A backup or verification of this project is running already."
    hint = "Wait for its end: `flux backup list` shows it."


class BackupFailed(FluxError):
    """The dump or its verification failed on the control plane; the message is the plane's."""

    code, status, exit_code = "backup_failed", 502, PLANE
    summary = "The backup failed."
    hint = "The message says why; `flux backup list --verbose` shows it again. Ask the platform's operator."


class DownloadDamaged(FluxError):
    code, status, exit_code = "download_damaged", 502, PLANE
    summary = "The downloaded file is not the backup: its size or checksum differs. It was removed."
    hint = "Download it again; if it lasts, verify the backup (`flux backup verify --id ID`)."


class DumpBlocked(FluxError):
    """Row-level security or a missing right keeps rows from the role; pg_dump refuses to leave them out silently."""

    code, status, exit_code = "dump_blocked", 403, POSTGRES
    summary = "The temporary role may not read everything, so that the dump would not be whole."
    hint = "Use --schema-only for the definitions alone, or `flux backup create` for a verified full tenant export."


class DumpFailed(FluxError):
    code, status, exit_code = "dump_failed", 502, POSTGRES
    summary = "pg_dump failed; nothing was left under the output's name."
    hint = "The detail is pg_dump's own."


class OutputUnusable(FluxError):
    """The output cannot be made there: no such directory, no right, no room."""

    code, status, exit_code = "output_unusable", 400, LOCAL
    summary = "The output cannot be written."
    hint = "Choose another place with --output, or make room; nothing was left under the output's name."


class ProgramTooOld(FluxError):
    code, status, exit_code = "program_too_old", 400, LOCAL
    summary = "The PostgreSQL client programs are older than the server."
    hint = "Install a postgresql-client of at least the server's version, ahead of the others on PATH."


class ArchiveInvalid(FluxError):
    code, status, exit_code = "archive_invalid", 400, LOCAL
    summary = "The input is not an archive that pg_restore can read."
    hint = "Give a file of `flux db dump` or `flux backup download`. Plain SQL goes through `flux db shell < FILE`."


class RestorePooled(FluxError):
    code, status, exit_code = "restore_pooled", 412, REFUSED
    summary = "Restore into a v2 pooled project is not supported: it would overwrite a production schema."
    hint = "Restore into a scratch database of your own or into a v1 dedicated project instead."


class RestoreNotAcknowledged(FluxError):
    code, status, exit_code = "restore_not_acknowledged", 412, REFUSED
    summary = "A restore can overwrite the project's data."
    hint = "Pass --yes-i-know-this-can-overwrite-data, or restore beside it with --into NEW_DB."


class RestoreBlocked(FluxError):
    """The newest backup would not bring the data back: missing, unverified, failed or too old."""

    code, status, exit_code = "restore_blocked", 412, REFUSED
    summary = "The newest backup does not allow overwriting the project's data."
    hint = "Run `flux backup create && flux backup verify --latest`, or pass --skip-backup-check, or use --into NEW_DB."


class RestoreFailed(FluxError):
    code, status, exit_code = "restore_failed", 502, POSTGRES
    summary = "pg_restore failed; the database is as it was before."
    hint = "The detail is pg_restore's own."


class DatabaseExists(FluxError):
    code, status, exit_code = "database_exists", 409, REFUSED
    summary = "A database of that name exists already."
    hint = "Choose another name for --into: a restore into a scratch database overwrites nothing."


# ------------------------------------------------------------ the client itself


class Usage(FluxError):
    code, status, exit_code = "usage", 400, USAGE
    summary = "The command line is not understood."
    hint = "See `flux --help`, or `flux COMMAND --help`."


class FluxJSONInvalid(FluxError):
    code, status, exit_code = "flux_json_invalid", 400, USAGE
    summary = "flux.json is not usable."
    hint = 'It needs {"slug": "…", "hash": "7 hex digits"}; run `flux init`, or pass the name and --hash.'


class ProjectMissing(FluxError):
    code, status, exit_code = "project_missing", 400, USAGE
    summary = "Which project?"
    hint = "Give its name and --hash, or run inside a directory with a flux.json."


class ProgramMissing(FluxError):
    code, status, exit_code = "program_missing", 400, LOCAL
    summary = "A PostgreSQL client program is missing."
    hint = "Install psql (Debian: postgresql-client; macOS: brew install libpq), then try again. No role was made."


class ProgramFailed(FluxError):
    """psql and its kin ended with an error of their own; their exit code is passed on."""

    code, status, exit_code = "program_failed", 400, LOCAL
    summary = "A PostgreSQL client program failed."
    hint = "The message is the program's own."


class NextFluxMissing(FluxError):
    code, status, exit_code = "next_flux_missing", 400, LOCAL
    summary = "That command belongs to the platform's own flux CLI, which is not on PATH."
    hint = "Install it, or see `flux --help` for what this one does."


class Interrupted(FluxError):
    code, status, exit_code = "interrupted", 499, 130
    summary = "Interrupted."
    hint = "Nothing was left open."


# What Postgres itself says inside a GUI, where no word of ours is shown (`…` stands for anything), and what to do.
IN_A_GUI: Final = (
    (
        'database "flux_temp_…" does not exist',
        "Set Database to postgres, not the temp username. Leave SSH tunnel in the GUI off: Flux forwards the port.",
    ),
    (
        "connected, but no tables are shown",
        "Add the tenant schema that `flux db tunnel` prints to the search path, and log in as the temporary role.",
    ),
    (
        "a table shows no rows",
        "Row-level security: the role sees only the rows that a policy shows it. The GUI block names such tables.",
    ),
    (
        'password authentication failed for user "flux_temp_…"',
        "The role has ended, or the password is another role's: run `flux db tunnel` and copy user and password anew.",
    ),
    (
        "terminating connection due to administrator command",
        "The credential's time is over, or its tunnel closed. Run `flux db tunnel` again; `tunnel renew` prolongs one.",
    ),
    (
        "server does not support SSL, but SSL was required",
        "Set SSL to off: the SSH tunnel encrypts the way to the platform.",
    ),
    (
        'too many connections for role "flux_temp_…"',
        "Close idle tabs and sessions of the GUI, then connect again.",
    ),
)


def every_error() -> list[type[FluxError]]:
    """All of the above, each once, in the order of this file: what the docs and the client's table are made from."""
    found: list[type[FluxError]] = []

    def visit(kind: type[FluxError]) -> None:
        found.append(kind)
        for child in kind.__subclasses__():
            visit(child)

    visit(FluxError)
    return found
