"""
The examples that each command's `--help` ends with. Nothing but `--help` loads them.

Every `flux …` in here is read by the command's own option table in a test, so that none can outlive what it shows.
"""

from __future__ import annotations

FOUNDRY = "foundry --hash 5774112"
YEASTCOAST = "yeastcoast --hash ffca33f"

# path -> (command line, what it is for)
EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        (f"flux db tunnel {FOUNDRY}", "for a GUI, until Ctrl+C"),
        (f"flux db shell {YEASTCOAST} -c 'SELECT now()'", "one question"),
        ("fluxctl doctor", "what is wrong"),
    ),
    "db": (
        (f"flux db tunnel {FOUNDRY}", "for a GUI, until Ctrl+C"),
        (f"flux db shell {FOUNDRY}", "psql"),
        (f"flux db password {YEASTCOAST}", "to paste"),
    ),
    "db tunnel": (
        (f"flux db tunnel {FOUNDRY}", "with a read-only role for an hour"),
        (f"flux db tunnel {FOUNDRY} --readwrite --ttl 900 --reason 'order 4711'", "where the platform allows it"),
        (f"flux db tunnel {YEASTCOAST} --local-port 15500 --strict-port", "this port or none"),
        ("flux db tunnel", "where a flux.json names the project"),
        (f"flux db tunnel {FOUNDRY} --json", "for a script"),
    ),
    "db shell": (
        (f"flux db shell {FOUNDRY}", "psql, with a role of its own"),
        (f"flux db shell {FOUNDRY} --command 'SELECT current_date'", "one question; psql's exit code"),
        (f"flux db shell {YEASTCOAST} --readonly", "v1: a session that only reads until you say otherwise"),
    ),
    "db password": (
        (f"flux db password {YEASTCOAST}", "the password alone, to paste"),
        (f"PGPASSWORD=$(flux db password {YEASTCOAST}) psql -h 127.0.0.1 -p 15432 -U postgres", "through a tunnel"),
    ),
    "db gui-config": (
        (f"flux db gui-config {YEASTCOAST}", "what to type where"),
        (f"flux db gui-config {FOUNDRY} --create-temp-credentials", "v2: with a role, for a tunnel that is open"),
        (f"flux db gui-config {FOUNDRY} --json", "for a script"),
    ),
    "db dump": (
        (f"flux db dump {YEASTCOAST} --output yeastcoast.dump", "the whole database (v1)"),
        (f"flux db dump {FOUNDRY} --schema-only --format plain --output foundry.sql", "the schema as SQL"),
        (f"flux db dump {YEASTCOAST} --format directory --jobs 4 --output yeastcoast.d", "four tables at a time"),
    ),
    "db restore": (
        (f"flux db restore {YEASTCOAST} --input yeastcoast.dump --into looked_at", "beside the data; needs no gate"),
        (
            f"flux db restore {YEASTCOAST} --input yeastcoast.dump --yes-i-know-this-can-overwrite-data",
            "over it, with a verified backup",
        ),
    ),
    "db access-plan": (
        (f"flux db access-plan {FOUNDRY}", "what you may do, without doing it"),
        (f"flux db access-plan {FOUNDRY} --json", "for a script"),
    ),
    "project": (
        ("flux project list", "names and hashes"),
        (f"flux project credentials {YEASTCOAST}", "user, password, host, port, URL"),
    ),
    "project credentials": (
        (f"flux project credentials {YEASTCOAST}", "all of it (v1)"),
        (f"flux project credentials {YEASTCOAST} --field postgres.password", "one value"),
    ),
    "project list": (
        ("flux project list", "names, hashes, modes"),
        ("flux project list --json", "for a script"),
    ),
    "project activity": (
        (f"flux project activity {FOUNDRY}", "newest first"),
        (f"flux project activity {FOUNDRY} --limit 5", "the last five"),
    ),
    "tunnel": (
        (f"fluxctl tunnel open {FOUNDRY}", "a tunnel that outlives the terminal"),
        ("fluxctl tunnel list", "what is open"),
        ("fluxctl tunnel close foundry", "and its temporary roles end"),
    ),
    "tunnel open": (
        (f"fluxctl tunnel open {FOUNDRY}", "until it is closed, or its role's hour is over"),
        (f"fluxctl tunnel open {FOUNDRY} --renew", "longer, while clients are connected"),
        (f"fluxctl tunnel open {FOUNDRY} --new-credential", "when the password was lost"),
        (f"fluxctl tunnel open {YEASTCOAST} --json", "for a script"),
    ),
    "tunnel close": (
        ("fluxctl tunnel close foundry", "by name, hash, id or port"),
        ("fluxctl tunnel close --all", "all of them"),
    ),
    "tunnel list": (
        ("fluxctl tunnel list", "with state, port and lease"),
        ("fluxctl tunnel list --json", "for a script"),
    ),
    "tunnel show": (
        ("fluxctl tunnel show 15432", "by port, name, hash or id"),
        ("fluxctl tunnel show foundry --json", "for a script"),
    ),
    "tunnel renew": (
        ("fluxctl tunnel renew foundry", "for as long as it was made for"),
        ("fluxctl tunnel renew foundry --ttl 7200", "two hours from now"),
    ),
    "tunnel watch": (
        ("fluxctl tunnel watch", "everything, until Ctrl+C"),
        ("fluxctl tunnel watch foundry --json", "one tunnel, an object a line"),
    ),
    "tunnel forget": (("fluxctl tunnel forget foundry", "the next tunnel takes the lowest free port"),),
    "service": (
        ("fluxctl service install", "once; then forget it"),
        ("fluxctl service restart", "after an upgrade"),
        ("fluxctl service logs --follow", "what it says"),
    ),
    "service install": (("fluxctl service install", "again changes nothing"),),
    "service uninstall": (
        ("fluxctl service uninstall", "tunnels are closed, their temporary roles ended"),
        ("fluxctl service uninstall --purge", "settings, ports and logs are removed too"),
    ),
    "service status": (
        ("fluxctl service status", "exit code 0: it runs, or the next command starts it"),
        ("fluxctl service status --json", "for a script"),
    ),
    "service logs": (
        ("fluxctl service logs", "the last hundred lines"),
        ("fluxctl service logs --lines 20 --follow", "and what comes, until Ctrl+C"),
    ),
    "service restart": (("fluxctl service restart", "after an upgrade; ports and roles are kept, clients wait"),),
    "host": (("fluxctl host trust bastion.example.com", "after comparing the fingerprint"),),
    "host trust": (
        ("fluxctl host trust deploy@bastion.example.com:2222", "shows the key and asks"),
        ("fluxctl host trust bastion.example.com --fingerprint SHA256:jsbZ…", "in a script"),
    ),
    "config": (
        ("fluxctl config example > ~/.config/fluxd/config.toml", "macOS: ~/Library/Application Support/fluxd/"),
        ("fluxctl config check", "before a restart"),
        ("fluxctl config show", "what holds, and why"),
    ),
    "config show": (("fluxctl config show", "each value, and where it comes from"),),
    "config check": (("fluxctl config check", "a mistake is told with its line"),),
    "config example": (
        ("fluxctl config example", "all there is, commented"),
        ("fluxctl config example > ~/.config/fluxd/config.toml", "macOS: ~/Library/Application Support/fluxd/"),
    ),
    "backup": (
        (f"flux backup create {YEASTCOAST}", "make one"),
        (f"flux backup verify {YEASTCOAST} --latest", "prove it"),
        (f"flux backup download {YEASTCOAST} --latest", "have it"),
    ),
    "backup create": ((f"flux backup create {YEASTCOAST}", "and wait until it is made"),),
    "backup list": (
        (f"flux backup list {YEASTCOAST}", "newest first"),
        (f"flux backup list {YEASTCOAST} --verbose", "everything known"),
    ),
    "backup verify": (
        (f"flux backup verify {YEASTCOAST} --latest", "the newest one"),
        (f"flux backup verify {YEASTCOAST} --id 1f0c9a52-8d1e-4c0b-9c43-0e6f2a7b5d11", "that one"),
    ),
    "backup download": (
        (f"flux backup download {YEASTCOAST} --latest -o yeastcoast.dump", "again goes on where it broke off"),
    ),
    "dump": (
        (f"flux dump {YEASTCOAST} -o yeastcoast.sql", "definitions and rows"),
        (f"flux dump {YEASTCOAST} --schema-only", "to stdout"),
    ),
    "list": (
        ("flux list", "your projects"),
        ("flux list --json", "for a script"),
    ),
    "activity": ((f"flux activity {FOUNDRY} --limit 5", "the last five events"),),
    "status": (
        ("fluxctl status", "the daemon, its SSH hosts, its tunnels"),
        ("fluxctl status --json", "for a script"),
    ),
    "login": (
        ("fluxctl login", "asks for the token"),
        ("fluxctl login --token-stdin < token", "for a script"),
        ("fluxctl login --api-base https://flux.example.com", "another platform's"),
    ),
    "exec": (
        (f"fluxctl exec {FOUNDRY} -- python report.py", "with DATABASE_URL; its exit code"),
        (f"fluxctl exec {FOUNDRY} -- sh -c 'pg_isready && psql -c \"SELECT 1\"'", "with PGHOST, PGUSER, …"),
    ),
    "audit": (
        ("fluxctl audit", "about you and all your projects"),
        (f"fluxctl audit {FOUNDRY} --since 7d", "one project's last week"),
    ),
    "doctor": (
        ("fluxctl doctor", "this machine and the control plane"),
        (f"fluxctl doctor {FOUNDRY}", "the way to its database too"),
    ),
    "completion": (
        ('eval "$(fluxctl completion bash)"', "in ~/.bashrc"),
        ('eval "$(fluxctl completion zsh)"', "in ~/.zshrc, after compinit"),
        ("fluxctl completion fish > ~/.config/fish/completions/fluxctl.fish", "once"),
    ),
    "logout": (
        ("fluxctl logout", "closes its tunnels, ends its roles"),
        ("fluxctl logout --api-base https://flux.example.com", "another platform's"),
    ),
}


def of(path: str) -> list[str]:
    """The examples of the command or group *path*, as lines of its help."""
    rows = EXAMPLES[path]
    width = max(len(line) for line, _ in rows)
    if width > 64:
        return ["", "Examples:", *(text for line, says in rows for text in (f"  # {says}", f"  {line}"))]
    return ["", "Examples:", *(f"  {line:<{width}}   # {says}" for line, says in rows)]
