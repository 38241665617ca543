"""
`make bench-first-query`: from the command to the first row, against `ssh -L` and psql by hand.

By hand: `ssh -N -L` (a new connection), wait until its port listens, `psql -c 'SELECT 1'`, end ssh. With flux:
`flux db shell … --command 'SELECT 1'`, with a running daemon whose connection to the SSH host is open (another
project's tunnel keeps it), once without and once with a tunnel of the project open. In turn, round by round; the
ratios are paired by round. By hand nobody finds the container, checks who answers, or mints a role.
"""

import os
import statistics
import subprocess
import time
from urllib.parse import unquote, urlsplit

from bench import rig
from bench.world import world
from fluxplane.lab.ports import free_port

PROJECTS = {"v1": ("yeastcoast", "ffca33f"), "v2": ("foundry", "5774112")}
OTHER = {"v1": PROJECTS["v2"], "v2": PROJECTS["v1"]}


def by_hand(lab, plan, url):
    ssh, port, there = lab.facts["ssh"], free_port(), plan["database"]
    forward = f"{port}:{there['internalHost']}:{there['internalPort']}"
    argv = ["ssh", "-F", "none", "-N", "-o", f"UserKnownHostsFile={ssh['known_hosts']}", "-o", "BatchMode=yes"]
    argv += ["-i", ssh["identity_file"], "-p", str(ssh["port"]), "-L", forward, f"{ssh['user']}@{ssh['host']}"]
    secret = unquote(urlsplit(url).password)
    begun = time.perf_counter()
    with rig.running(argv) as process:
        rig.wait_listening(port, process)
        psql = ["psql", "-X", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-d", "postgres", "-c", "SELECT 1"]
        subprocess.run(psql, env={**os.environ, "PGPASSWORD": secret}, capture_output=True, check=True)
        return time.perf_counter() - begun


def with_flux(daemon, env, project):
    begun = time.perf_counter()
    done = daemon.flux("db", "shell", project[0], "--hash", project[1], "--command", "SELECT 1", env=env)
    took = time.perf_counter() - begun
    if done.returncode or "1 row" not in done.stdout:
        raise RuntimeError(done.stdout + done.stderr)
    return took


def opened(daemon, env, project):
    daemon.flux("tunnel", "open", project[0], "--hash", project[1], env=env).check_returncode()


def closed(daemon, env, project):
    daemon.flux("tunnel", "close", project[1], env=env).check_returncode()


def measure(lab, daemon, mode, rounds):
    env, project = lab.env, PROJECTS[mode]
    plan = daemon.flux_json("db", "access-plan", project[0], "--hash", project[1], env=env)
    url = lab.dedicated_url if mode == "v1" else lab.pool_admin_url
    opened(daemon, env, OTHER[mode])
    found = {"by hand": [], "flux": [], "flux, tunnel open": []}
    for _ in range(rounds):
        found["by hand"].append(by_hand(lab, plan, url))
        found["flux"].append(with_flux(daemon, env, project))
        opened(daemon, env, project)
        found["flux, tunnel open"].append(with_flux(daemon, env, project))
        closed(daemon, env, project)
    closed(daemon, env, OTHER[mode])
    return found


def table(found, rounds):
    yield f"Medians of {rounds} rounds, seconds to the first row; ratios to by hand, paired by round."
    yield ""
    yield "| | by hand | flux | ratio | flux, tunnel open | ratio |"
    yield "|---|---|---|---|---|---|"
    for mode, times in found.items():
        cells = [f"{statistics.median(times['by hand']):.3f}"]
        for name in ("flux", "flux, tunnel open"):
            ratios = [one / hand for one, hand in zip(times[name], times["by hand"], strict=True)]
            cells += [f"{statistics.median(times[name]):.3f}", f"**{statistics.median(ratios):.2f}**"]
        yield f"| {mode} | {' | '.join(cells)} |"


def main():
    options = rig.options(__doc__, rounds=9).parse_args()
    with world("--ssh", "openssh") as (lab, daemon):
        found = {mode: measure(lab, daemon, mode, options.rounds) for mode in PROJECTS}
    rig.publish("bench-first-query", table(found, options.rounds), options.write)


if __name__ == "__main__":
    main()
