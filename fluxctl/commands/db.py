"""
`flux db access-plan|gui-config|password|tunnel`: what a project's database is, and the way in.

Their text is the platform's contract (lines, order and tokens; scripts grep for them), their `--json` a superset of it.
`flux db shell` is in `commands.shell`.
"""

from __future__ import annotations

from fluxctl import environment, gui, opening, screen, url
from fluxctl.client import Client
from fluxctl.options import Command
from fluxctl.problem import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from fluxctl.hold import Held
    from fluxctl.options import Arguments
    from fluxctl.project import Project
    from fluxd.shapes import Credential, PlanAnswer, Tunnel

V1 = "v1_dedicated"
_CAPABILITIES = (
    "tunnel",
    "guiConfig",
    "shell",
    "dump",
    "restore",
    "readonly",
    "readwrite",
    "temporaryCredentials",
)


# ------------------------------------------------------------------- access-plan


def access_plan(arguments: Arguments) -> int:
    opening.refuse_contradictions(arguments)
    chosen = opening.chosen_project(arguments)
    client = _client(arguments)
    answer = client.plan(chosen.hash, local_port=arguments.local_port)
    plan = _as_asked(answer, arguments, client.env)
    opening.warn_of_other_name(chosen, plan["projectName"])
    if arguments.json:
        screen.json(plan)
        return 0
    screen.section("Database access plan")
    for line in plan_lines(plan):
        screen.line(line)
    opening.say_notices(answer)
    return 0


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """The plan as text."""
    pooled = plan["mode"] != V1
    database, tunnel, capabilities = plan["database"], plan["tunnel"], plan["capabilities"]
    return [
        f"Mode: {mode_text(plan['mode'])}",
        f"Project: {plan['projectName']} ({plan['projectHash']})",
        *([] if pooled else [f"Scope: {plan['scope']}"]),
        f"Internal host: {database['internalHost']}:{database['internalPort']}",
        f"Container: {database.get('containerName') or database['internalHost']}",
        f"Local bind: {_joined(tunnel['recommendedLocalHost'], tunnel['recommendedLocalPort'])}",
        f"SSH: {tunnel['sshUser']}@{tunnel['sshHost']}:{tunnel['sshPort']}",
        "Capabilities: " + " ".join(f"{name}={_yes_no(capabilities[name])}" for name in _CAPABILITIES),
        *(_pooled_lines(plan) if pooled else []),
    ]


def _pooled_lines(plan: Mapping[str, Any]) -> list[str]:
    rls_tables = plan.get("rlsTables") or []
    return [
        f"Schema: {plan['tenantSchema']}",
        "Supported: true",
        *(f"Note: {note}" for note in plan["securityNotes"]),
        "Database: postgres",
        f"Tenant schema: {plan['tenantSchema']}",
        f"Search path: {', '.join(plan['database']['searchPath'])}",
        *([f"Row-level security: {gui.rls_text(rls_tables)}"] if rls_tables else []),
        "SSH tunnel (GUI): off (CLI manages SSH)",
    ]


# -------------------------------------------------------------------- gui-config


def gui_config(arguments: Arguments) -> int:
    opening.refuse_contradictions(arguments)
    chosen = opening.chosen_project(arguments)
    client = _client(arguments)
    return _config_only(arguments, chosen, client, mints=arguments.create_temp_credentials)


def _config_only(arguments: Arguments, chosen: Project, client: Client, *, mints: bool) -> int:
    """The GUI block without a tunnel of its own: of the one that is open, else of the one that would be."""
    answer = client.plan(chosen.hash, local_port=arguments.local_port)
    plan = _as_asked(answer, arguments, client.env)
    opening.warn_of_other_name(chosen, plan["projectName"])
    if plan["mode"] == V1:
        opening.refuse_for_dedicated(arguments)
    is_open, minted = _open_tunnel(answer, arguments) is not None, None
    if mints and plan["mode"] != V1:
        if not is_open:
            _refuse_in_vain(arguments, plan["tunnel"])
        minted = client.grant(chosen.hash, opening.mint_body(arguments))
    credential = minted["credential"] if minted else None
    connection = gui.of_plan(
        plan,
        host=plan["tunnel"]["recommendedLocalHost"],
        port=plan["tunnel"]["recommendedLocalPort"],
        is_open=is_open,
        credential=credential,
    )
    if arguments.json:
        screen.json(_config_json(plan, connection, credential, whole_plan=mints or arguments.print_config))
    else:
        _print_config(connection, credential, revocable={"grant_id", "revoke"} <= set(plan.get("extensions", ())))
    opening.say_notices(answer, minted or {})
    return 0


def _refuse_in_vain(arguments: Arguments, tunnel: Mapping[str, Any]) -> None:
    """
    No role for a tunnel that could not be opened as these arguments say.

    Raises:
        Problem: ssh_host_missing, port_taken.
    """
    if not tunnel["sshHost"]:
        raise Problem("ssh_host_missing")
    if arguments.strict_port:
        asked, port = arguments.local_port, tunnel["recommendedLocalPort"]
        if asked not in {None, port}:
            raise Problem("port_taken", f"Local port {asked} is kept for another project.")
        if not opening.is_free(tunnel["recommendedLocalHost"], port):
            raise Problem("port_taken", f"Local port {port} is in use.")


def _config_json(
    plan: Mapping[str, Any], connection: gui.Connection, credential: Credential | None, *, whole_plan: bool
) -> dict[str, Any]:
    shown = plan if whole_plan else {name: plan[name] for name in ("mode", "supported", "capabilities")}
    return {"plan": shown, **_credential_json(credential), **gui_json(connection)}


def _print_config(connection: gui.Connection, credential: Credential | None, *, revocable: bool) -> None:
    print_block(connection)
    if credential:
        screen.line(screen.yellow(gui.SHOWN_ONCE))
        screen.line(f"Expires: {_expires(credential)}")
        screen.line(
            "A role was made for this block. It works through any tunnel to this project until then; "
            "`flux db tunnel` makes one of its own."
        )
        if revocable:
            screen.line(f"`fluxctl tunnel close {connection.slug}` ends it sooner.")


# ---------------------------------------------------------------------- password


def password(arguments: Arguments) -> int:
    """Print the password of a v1 project, and nothing else."""
    opening.refuse_contradictions(arguments)
    chosen = opening.chosen_project(arguments)
    found = _client(arguments).credentials(chosen.hash)
    opening.warn_of_other_name(chosen, found["slug"])
    if found["mode"] != V1:
        raise pooled_refusal(found["slug"], chosen.hash)
    opening.refuse_for_dedicated(arguments)
    parts = url.parsed(found["postgresConnectionString"])
    if arguments.json:
        screen.json({"user": parts["user"], "password": parts["password"]})
    else:
        print(parts["password"])
    return 0


def pooled_refusal(slug: str, project_hash: str) -> Problem:
    return Problem(
        "pooled_password_refused",
        hint=f"Run `flux db tunnel {slug} --hash {project_hash}` to create a temporary role; "
        "its one-time password is in the GUI block.",
    )


# ------------------------------------------------------------------------ tunnel


def tunnel(arguments: Arguments) -> int:
    """Open a tunnel and hold it until Ctrl+C."""
    opening.refuse_contradictions(arguments)
    chosen = opening.chosen_project(arguments)
    client = _client(arguments)
    if arguments.print_config:
        return _config_only(arguments, chosen, client, mints=True)
    opening.refuse_early_for_dedicated(client, chosen, arguments, readonly_too=True)
    return _hold(arguments, chosen, client)


def _hold(arguments: Arguments, chosen: Project, client: Client) -> int:
    from fluxctl import hold  # noqa: PLC0415 - signals and threads, needed only while holding

    hold.stop_on_signals()
    with hold.Held(client, opening.open_body(arguments, chosen, hold=True, credential="new")) as held:
        _print_open(arguments, chosen, held)
        try:
            hold.narrate(held)
        except KeyboardInterrupt:
            screen.note("Closing the tunnel.")
    return 0


def _print_open(arguments: Arguments, chosen: Project, held: Held) -> None:
    opened, found = held.opened, held.tunnel
    opening.warn_of_other_name(chosen, found["project"])
    connection = gui.of_plan(
        opened["plan"],
        host=found["host"],
        port=found["port"],
        is_open=True,
        credential=opened["credential"],
    )
    if arguments.json:
        screen.json(open_json(opened["plan"], found, connection, opened["credential"]))
    else:
        print_open(found, opened["plan"], connection, opened["credential"])
        screen.line(screen.dim("Press Ctrl+C to close the tunnel."))
    opening.say_notices(opened, found)


def print_open(
    found: Tunnel, plan: Mapping[str, Any], connection: gui.Connection, credential: Credential | None
) -> None:
    """The two sections that `db tunnel` and `tunnel open` print."""
    screen.section("Tunnel open")
    for line in tunnel_lines(found, plan, credential):
        screen.line(line)
    print_block(connection)
    if credential:
        screen.line(screen.yellow(gui.SHOWN_ONCE))


def tunnel_lines(found: Tunnel, plan: Mapping[str, Any], credential: Credential | None) -> list[str]:
    scope = plan["scope"] if found["mode"] == V1 else f"{plan['scope']} ({found['tenant_schema']})"
    method = f" ({found['resolution_method']})" if found["resolution_method"] else ""
    lines = [
        f"Mode: {mode_text(found['mode'])}",
        f"Project: {found['project']} ({found['hash']})",
        f"Local: {_joined(found['host'], found['port'])}",
        f"Remote: {found['upstream'] or 'not connected yet'}{method}",
        f"Scope: {scope}",
    ]
    if credential:
        lines += [f"User: {credential['username']}", f"Expires: {_expires(credential)}"]
    return lines


def open_json(
    plan: Mapping[str, Any], found: Tunnel, connection: gui.Connection, credential: Credential | None
) -> dict[str, Any]:
    """The contract's `tunnel --json`, with `tunnel` and `credential` beside it."""
    return {
        "tunnelOpen": True,
        "sshArgs": ssh_args(found, plan),
        "resolutionMethod": found["resolution_method"],
        "plan": plan,
        "auth": {"mode": found["mode"], "username": connection.user_text},
        **_credential_json(credential),
        **gui_json(connection),
        "tunnel": found,
    }


def ssh_args(found: Tunnel, plan: Mapping[str, Any]) -> list[str]:
    """The `ssh` argv that would forward the same, for reading only: fluxd opens channels of its own."""
    destination, _, port = found["ssh"].rpartition(":")
    upstream = found["upstream"] or f"{plan['database']['internalHost']}:{plan['database']['internalPort']}"
    forward = f"{_bracketed(found['host'])}:{found['port']}:{upstream}"
    return ["-N", "-L", forward, "-p", port, "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", destination]


# ------------------------------------------------------------------ shared pieces


def print_block(connection: gui.Connection) -> None:
    screen.section("GUI config")
    for line in gui.block(connection):
        screen.line(line)
    screen.section("What to paste where")
    for program, line in gui.programs(connection).items():
        screen.line(f"{program}: {line}")
    screen.line()


def gui_json(connection: gui.Connection) -> dict[str, Any]:
    return {
        "guiFields": gui.fields(connection),
        "guiConfig": gui.block(connection),
        "guiPrograms": gui.programs(connection),
    }


def mode_text(mode: str) -> str:
    return mode if mode == V1 else f"{mode} (pooled)"


def _client(arguments: Arguments) -> Client:
    return Client(environment.of_shell(arguments.values))


def _credential_json(credential: Credential | None) -> dict[str, Any]:
    """`credential` with the contract's own names beside ours."""
    if credential is None:
        return {}
    theirs = {
        "expiresAt": credential["expires_at"],
        "tenantSchema": credential["tenant_schema"],
        "searchPath": credential["search_path"],
    }
    return {"credential": {**credential, **theirs}}


def _as_asked(answer: PlanAnswer, arguments: Arguments, env: environment.Environment) -> dict[str, Any]:
    """The plan with what the flags, the shell and an open tunnel say about its `tunnel` part."""
    plan, ssh = dict(answer["plan"]), env.ssh()
    found = _open_tunnel(answer, arguments)
    tunnel = dict(plan["tunnel"])
    tunnel["sshHost"] = ssh.get("host") or tunnel["sshHost"]
    tunnel["sshUser"] = ssh.get("user") or tunnel["sshUser"]
    tunnel["sshPort"] = ssh.get("port") or tunnel["sshPort"]
    if found:
        tunnel["recommendedLocalHost"], tunnel["recommendedLocalPort"] = found["host"], found["port"]
    else:
        tunnel["recommendedLocalHost"] = arguments.host or tunnel["recommendedLocalHost"]
        access = "readwrite" if plan["mode"] == V1 else opening.access(arguments)
        tunnel["recommendedLocalPort"] = (
            answer.get("ports", {}).get(access) or arguments.local_port or tunnel["recommendedLocalPort"]
        )
    return {**plan, "tunnel": tunnel}


def _open_tunnel(answer: PlanAnswer, arguments: Arguments) -> Tunnel | None:
    """The tunnel that a GUI would use now: open, and not another than the flags ask for."""
    for one in answer["tunnels"]:
        fits = one["mode"] == V1 or one["access"] == opening.access(arguments)
        if fits and one["state"] in {"up", "reconnecting"} and arguments.local_port in {None, one["port"]}:
            return one
    return None


def _expires(credential: Credential) -> str:
    from fluxctl import instant  # noqa: PLC0415 - where no role is shown, no instant is

    return instant.shown(credential["expires_at"], remaining_s=credential["remaining_s"])


def _joined(host: str, port: int) -> str:
    return f"{_bracketed(host)}:{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _yes_no(value: object) -> str:
    return "true" if value else "false"


COMMANDS = {
    "access-plan": Command(access_plan, positionals=("[NAME]",), options=opening.DB_FLAGS),
    "gui-config": Command(gui_config, positionals=("[NAME]",), options=opening.DB_FLAGS),
    "password": Command(password, positionals=("[NAME]",), options=opening.DB_FLAGS),
    "tunnel": Command(tunnel, positionals=("[NAME]",), options=opening.DB_FLAGS),
}
