"""
What to type into a GUI: the block of fields, the same as JSON, and a line for each program people use.

The order and the words of the block are the platform's contract; scripts grep for them. The database-name trap has its
line wherever a temporary username is shown: Beekeeper takes the username for the database when that field is left
empty.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from fluxd.shapes import Credential

DATABASE_WARNING = "Do not use the temp username as the database name. Use database postgres."
OPEN_NOTE = "Flux CLI already opened the SSH tunnel"
CLOSED_NOTE = "`flux db tunnel` opens the SSH tunnel"
SHOWN_ONCE = "The password is shown once. Copy it now; it is stored nowhere."


class Connection:
    """Everything a GUI needs to know about one way into one project."""

    def __init__(
        self,
        *,
        slug: str,
        project_hash: str,
        pooled: bool,
        host: str,
        port: int,
        is_open: bool,
        kept: bool = False,
        username: str | None,
        password: str | None = None,
        tenant_schema: str | None = None,
        search_path: Sequence[str] = (),
        rls_tables: Sequence[str] = (),
    ) -> None:
        self.slug = slug
        self.hash = project_hash
        self.pooled = pooled
        self.host = host
        self.port = port
        self.is_open = is_open
        self.kept = kept
        self.username = username
        self.password = password
        self.tenant_schema = tenant_schema
        self.search_path = list(search_path)
        self.rls_tables = list(rls_tables)

    @property
    def shows_role(self) -> bool:
        """A temporary username is shown: the one that Beekeeper would take for a database."""
        return self.pooled and self.username is not None

    @property
    def user_text(self) -> str:
        return self.username or "<temporary role: created by `flux db tunnel`>"

    @property
    def password_hint(self) -> str:
        """v1: the command that reveals it. v2: the one-time password itself, else where it comes from."""
        if not self.pooled:
            return f"flux db password {self.slug} --hash {self.hash}"
        if self.password is not None:
            return self.password
        if self.username:
            return "<shown once, when the role was made>"
        return "<one-time password: shown by `flux db tunnel`>"

    @property
    def ssh_note(self) -> str:
        return OPEN_NOTE if self.is_open else CLOSED_NOTE


def of_plan(
    plan: Mapping[str, Any],
    *,
    host: str,
    port: int,
    is_open: bool,
    kept: bool = False,
    credential: Credential | None = None,
) -> Connection:
    """The connection of a project as its *plan* says, with the role of *credential* if there is one."""
    database = plan["database"]
    pooled = plan["mode"] == "v2_shared"
    return Connection(
        slug=plan["projectName"],
        project_hash=plan["projectHash"],
        pooled=pooled,
        host=host,
        port=port,
        is_open=is_open,
        kept=kept,
        username=credential["username"] if credential else database.get("username"),
        password=credential["password"] if credential else None,
        tenant_schema=plan.get("tenantSchema"),
        search_path=credential["search_path"] if credential else database.get("searchPath", ()),
        rls_tables=plan.get("rlsTables", ()) if pooled else (),
    )


def fields(connection: Connection) -> dict[str, Any]:
    """`guiFields` of every `--json`."""
    found: dict[str, Any] = {
        "connectionName": f"{connection.slug} via Flux",
        "type": "Postgres",
        "host": connection.host,
        "port": connection.port,
        "user": connection.user_text,
        "passwordHint": connection.password_hint,
        "databaseName": "postgres",
        "sslMode": "disable",
    }
    if connection.pooled:
        found["tenantSchema"] = connection.tenant_schema
        found["searchPath"] = connection.search_path
    found["guiSshTunnel"] = "off"
    found["guiSshTunnelNote"] = connection.ssh_note
    if connection.shows_role:
        found["v2DatabaseWarning"] = DATABASE_WARNING
    if connection.rls_tables:
        found["rlsTables"] = connection.rls_tables
    return found


def block(connection: Connection) -> list[str]:
    """The GUI block: one field per line, bare, in the contract's order."""
    lines = [
        f"Connection Name: {connection.slug} via Flux",
        "Type: Postgres",
        f"Host: {connection.host}",
        f"Port: {connection.port}",
        f"User: {connection.user_text}",
        f"Password: {connection.password_hint}",
        "Database: postgres",
    ]
    if connection.shows_role:
        lines.append(f"Note: {DATABASE_WARNING}")
    if connection.pooled:
        lines += [f"Tenant schema: {connection.tenant_schema}", f"Search path: {', '.join(connection.search_path)}"]
    lines += ["SSL: disabled over tunnel", f"SSH tunnel (GUI): off — {connection.ssh_note}"]
    if connection.rls_tables:
        lines.append(f"Row-level security: {rls_text(connection.rls_tables)}")
    return [*lines, "", _as_long_as(connection)]


def rls_text(tables: Sequence[str]) -> str:
    """What row-level security means to somebody who sees an empty table."""
    return f"this role sees only the rows that a policy shows it, in {', '.join(tables)}"


def programs(connection: Connection) -> dict[str, str]:
    """For each program the line that says what to paste where."""
    password = "the password above" if connection.password_hint == connection.password else _password_source(connection)
    where = f"Host {connection.host}, Port {connection.port}, User {connection.user_text}"
    schemas = f" Schemas: tick {connection.tenant_schema}." if connection.pooled else ""
    return {
        "Beekeeper Studio": f"Connection type Postgres; {where}, Password {password}, Default Database postgres; "
        "leave Enable SSL and SSH Tunnel off.",
        "DBeaver": f"Main tab: {where}, Database postgres, Password {password}; SSH and SSL tabs unticked."
        + (f" Then Schema: {connection.tenant_schema}." if connection.pooled else ""),
        "TablePlus": f"PostgreSQL; {where}, Password {password}, Database postgres, SSL mode DISABLED, Over SSH off."
        + (f" Then ⌘K / Ctrl+K: {connection.tenant_schema}." if connection.pooled else ""),
        "DataGrip": f"{where}, Password {password}, Database postgres; SSH/SSL tab: both off.{schemas}",
        "psql": _psql_line(connection),
    }


def _as_long_as(connection: Connection) -> str:
    if connection.kept:
        lease = ", or until the credential ends" if connection.pooled else ""
        return f"This works until `fluxctl tunnel close {connection.slug}`{lease}."
    return "This only works while `flux db tunnel` runs."


def _password_source(connection: Connection) -> str:
    if not connection.pooled:
        return f"printed by `{connection.password_hint}`"
    return "shown once, when `flux db tunnel` makes the role"


def _psql_line(connection: Connection) -> str:
    """
    A command to paste. The password is asked for: in a URL it would be seen by every user of the machine.

    PGREQUIREAUTH makes psql refuse to send the password in clear, should somebody else ever answer on this port.
    """
    user = connection.username or "<user>"
    return (
        "PGREQUIREAUTH=scram-sha-256 PGSSLMODE=disable "
        f"psql -h {connection.host} -p {connection.port} -U {user} -d postgres"
    )
