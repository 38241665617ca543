"""
`fluxctl tunnel open|close|list|show|renew|watch|forget`, and `fluxctl status`: the tunnels that the daemon keeps.

`tunnel open` is held by nobody: the tunnel lives until it is closed or over. `PROJECT` is an id, slug, hash or port.
"""

from __future__ import annotations

from fluxctl import environment, opening, screen
from fluxctl.client import Client
from fluxctl.gui import DATABASE_WARNING
from fluxctl.options import Command, Option, ttl
from fluxctl.problem import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fluxctl.options import Arguments
    from fluxd.shapes import HostStatus, Status, Tunnel, TunnelClosed

_HEAD = ("ID", "PROJECT", "HASH", "MODE", "ACCESS", "STATE", "LOCAL", "LEASE", "CLIENTS", "UP", "DOWN")


def open_(arguments: Arguments) -> int:
    from fluxctl import gui  # noqa: PLC0415 - `tunnel list` does without
    from fluxctl.commands import db  # noqa: PLC0415

    opening.refuse_contradictions(arguments)
    chosen = opening.chosen_project(arguments)
    client = _client(arguments)
    opening.refuse_early_for_dedicated(client, chosen, arguments, readonly_too=True)
    wanted = "new" if arguments.new_credential else "keep"
    opened = client.open(opening.open_body(arguments, chosen, hold=False, credential=wanted))
    found, credential = opened["tunnel"], opened["credential"]
    opening.warn_of_other_name(chosen, found["project"])
    connection = gui.of_plan(
        opened["plan"], host=found["host"], port=found["port"], is_open=True, kept=True, credential=credential
    )
    if connection.username is None:
        connection.username = found["username"]
    if arguments.json:
        block = {**gui.fields(connection), "lines": gui.block(connection), "programs": gui.programs(connection)}
        screen.json({"tunnel": found, "credential": credential, "gui": block})
    else:
        db.print_open(found, opened["plan"], connection, credential)
        if credential is None and connection.pooled:
            screen.line("Its password was shown when the role was made; --new-credential makes another role.")
        screen.line(screen.dim(f"Close it with `fluxctl tunnel close {found['project']}`."))
    opening.say_notices(opened, found)
    return 0


def close(arguments: Arguments) -> int:
    client = _client(arguments)
    names = [one["id"] for one in client.tunnels()] if arguments.all else arguments.positionals
    if not names and not arguments.all:
        raise usage("PROJECT is missing (or --all)")
    closed = []
    for name in names:
        answer = client.close(name)
        closed.append(answer)
        opening.say_notices(answer)
        if not arguments.json:
            screen.line(_closed_text(name, answer))
    if arguments.json:
        screen.json({"closed": closed})
    return 0


def _closed_text(name: str, answer: TunnelClosed) -> str:
    found, revoked = answer["tunnel"], answer["revoked"]
    if found is None and not revoked:
        # What is noticed here is a plane that cannot revoke.
        return f"The temporary roles of {name} {'end at their expiry' if answer['notices'] else 'are ending'}."
    if found is None:
        return f"Ended the temporary roles of {name}."
    roles = ", its temporary role ended" if revoked and found["mode"] != "v1_dedicated" else ""
    return f"Closed {found['project']} ({found['hash']}) on port {found['port']}{roles}."


def list_(arguments: Arguments) -> int:
    found = _client(arguments).tunnels()
    if arguments.json:
        screen.json({"tunnels": found})
    elif not found:
        screen.line("No tunnels are open.")
    else:
        screen.table(_HEAD, [_row(one) for one in found])
    return 0


def show(arguments: Arguments) -> int:
    found = _client(arguments).tunnel(arguments.positionals[0])
    if arguments.json:
        screen.json({"tunnel": found})
        return 0
    screen.section(f"Tunnel {found['id']}")
    for line in _tunnel_lines(found):
        screen.line(line)
    return 0


def renew(arguments: Arguments) -> int:
    found = _client(arguments).renew(arguments.positionals[0], {"ttl_s": arguments.ttl} if arguments.ttl else {})
    if arguments.json:
        screen.json({"tunnel": found})
    else:
        screen.line(f"Renewed {found['project']} ({found['hash']}): {_lease_text(found)} left.")
    opening.say_notices(found)
    return 0


def forget(arguments: Arguments) -> int:
    """Give back the local port that is kept for a project."""
    name = arguments.positionals[0]
    _client(arguments).forget(name)
    if arguments.json:
        screen.json({"forgotten": name})
    else:
        screen.line(f"The port kept for {name} is free for others.")
    return 0


def watch(arguments: Arguments) -> int:
    """Print events as they come, until Ctrl+C."""
    from fluxctl import hold, quickjson  # noqa: PLC0415 - `tunnel list` does without

    client = _client(arguments)
    name = arguments.name
    tunnel_id = client.tunnel(name)["id"] if name else None
    hold.stop_on_signals()
    try:
        with client.events(tunnel=tunnel_id) as events:
            for event in events:
                if arguments.json:
                    print(quickjson.dumps(event), flush=True)
                else:
                    screen.line(_event_text(event))
    except KeyboardInterrupt:
        pass
    return 0


def status(arguments: Arguments) -> int:
    client = _client(arguments)
    found, tunnels = client.status(), client.tunnels()
    if arguments.json:
        screen.json(found)
        return 0
    screen.section("fluxd")
    for line in _status_lines(found):
        screen.line(line)
    screen.section("SSH hosts")
    if not found["hosts"]:
        screen.line("none yet")
    for host in found["hosts"]:
        screen.line(_host_text(host))
    screen.section("Tunnels")
    if tunnels:
        screen.table(_HEAD, [_row(one) for one in tunnels])
    else:
        screen.line("none open")
    for notice in found["notices"]:
        screen.note(notice)
    return 0


# ------------------------------------------------------------------------- text


def _client(arguments: Arguments) -> Client:
    return Client(environment.of_shell(arguments.values))


def _row(found: Tunnel) -> list[str]:
    traffic = found["traffic"]
    return [
        found["id"],
        found["project"],
        found["hash"],
        _mode_word(found),
        found["access"],
        found["state"],
        _local(found),
        _lease_text(found),
        str(traffic["relays"]),
        screen.size(traffic["bytes_up"]),
        screen.size(traffic["bytes_down"]),
    ]


def _mode_word(found: Tunnel) -> str:
    return "v1 dedicated" if found["mode"] == "v1_dedicated" else "v2 pooled"


def _local(found: Tunnel) -> str:
    host = f"[{found['host']}]" if ":" in found["host"] else found["host"]
    return f"{host}:{found['port']}"


def _lease_text(found: Tunnel) -> str:
    lease = found["lease"]
    if lease is None:
        return "-"
    return "over" if lease["state"] == "over" else screen.duration(lease["remaining_s"])


def _tunnel_lines(found: Tunnel) -> list[str]:
    traffic, problem = found["traffic"], found.get("problem")
    lines = [
        f"Project: {found['project']} ({found['hash']})",
        f"Mode: {_mode_word(found)}, {found['access']}",
        f"State: {found['state']}",
        f"Local: {_local(found)}",
        f"SSH: {found['ssh']}",
        f"Remote: {found['upstream'] or 'not connected yet'}"
        + (f" ({found['resolution_method']})" if found["resolution_method"] else ""),
        f"User: {found['username'] or 'none yet'}",
        f"Lease: {_lease_text(found)}",
        f"Clients: {traffic['relays']} now, {traffic['relays_total']} since it was opened",
        f"Bytes: {screen.size(traffic['bytes_up'])} up, {screen.size(traffic['bytes_down'])} down",
        f"Kept: {'until closed' if found['kept'] else 'as long as somebody holds it'} ({found['holds']} holding)",
        f"Platform: {found['api_base']} as {found['account']}",
    ]
    lines += [f"Problem: {problem['message']}"] if problem else []
    if found["mode"] != "v1_dedicated" and found["username"]:
        lines.append(f"Note: {DATABASE_WARNING}")
    return lines + [f"Notice: {notice}" for notice in found["notices"]]


def _status_lines(found: Status) -> list[str]:
    pending = found["revocations_pending"]
    return [
        f"Version: {found['version']}, running for {screen.duration(found['uptime_s'])} (pid {found['pid']})",
        f"Socket: {found['socket']}",
        f"Open: {_count(found['tunnels'], 'tunnel')}, {_count(found['relays'], 'client')}",
        *([f"Still to be confirmed: the end of {_count(pending, 'temporary role')}"] if pending else []),
    ]


def _host_text(host: HostStatus) -> str:
    latency = host["latency_s"]
    text = f"{host['user']}@{host['host']}:{host['port']}  {host['state']}"
    text += f", {latency * 1000:.0f} ms" if latency is not None else ""
    text += f", {_count(host['channels'], 'channel')}"
    problem = host["last_problem"]
    return text + (f"  last problem: {problem['message']}" if problem and host["state"] != "up" else "")


def _event_text(event: Any) -> str:
    tunnel, host, problem = event.get("tunnel"), event.get("host"), event.get("problem")
    bound = f" {_local(tunnel)}" if tunnel and tunnel["port"] else ""
    about = f"{tunnel['project']}{bound}" if tunnel else f"{host['host']}:{host['port']}" if host else ""
    said = (problem or {}).get("message") or event.get("message") or ""
    if event["name"] == "snapshot":
        said = f"{_count(len(event.get('tunnels') or ()), 'tunnel')} open"
    return "  ".join(part for part in (event["at"], event["name"], about, said) if part)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


_ONE = ("PROJECT",)
_ASK = (opening.JSON_FLAG, opening.API_BASE_FLAG)
COMMANDS = {
    "open": Command(
        open_,
        positionals=("[NAME]",),
        options=(
            *opening.PROJECT_FLAGS,
            *opening.FORWARD_FLAGS,
            *opening.SSH_FLAGS,
            *opening.ACCESS_FLAGS,
            Option("--new-credential", says="make one more temporary role, when a password was lost"),
            *_ASK,
        ),
    ),
    "close": Command(close, positionals=("[PROJECT...]",), options=(Option("--all", says="all of them"), *_ASK)),
    "list": Command(list_, options=_ASK),
    "show": Command(show, positionals=_ONE, options=_ASK),
    "renew": Command(
        renew,
        positionals=_ONE,
        options=(
            Option("--ttl", takes="SECONDS", check=ttl, says="from now, up to 8 h after it was made"),
            *_ASK,
        ),
    ),
    "forget": Command(forget, positionals=_ONE, options=_ASK),
    "watch": Command(watch, positionals=("[PROJECT]",), options=_ASK),
    "status": Command(status, options=_ASK),
}
