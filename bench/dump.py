"""
`make bench-dump`: a 1 GB table into a file, by `flux db dump` against a direct pg_dump and one through `ssh -L`.

The same pg_dump, server, sshd and disk for all three, in turn, round by round; ratios are paired by round. `plain` is
bounded by the way the bytes go, `custom` (the default) by pg_dump's own compression. flux's time is that of the whole
command: opening the tunnel, asking the control plane, pg_dump, fsync and the SHA-256 of the file.
"""

import contextlib
import os
import statistics
import subprocess
import time
from urllib.parse import unquote, urlsplit

import psycopg

from bench import rig
from bench.world import world
from fluxplane import binaries
from fluxplane.lab.ports import free_port

PROJECT = ("yeastcoast", "--hash", "ffca33f")
# 241 bytes of text in every row.
ROWS_OF_A_GB = 4_150_000
FORMATS = ("plain", "custom")
CIPHER = "aes128-gcm@openssh.com"


def fill(url, gigabytes):
    with psycopg.connect(url, autocommit=True) as link:
        link.execute("CREATE TABLE public.big (id bigint, words text)")
        link.execute(
            "INSERT INTO public.big SELECT n, md5(n::text) || md5((n + 1)::text) || repeat(md5((n + 2)::text), 5)"
            " FROM generate_series(1, %s) n",
            [int(ROWS_OF_A_GB * gigabytes)],
        )
        link.execute("VACUUM ANALYZE public.big")


@contextlib.contextmanager
def forwarded(lab, plan):
    """`ssh -N -L` by hand; its port."""
    ssh, port, there = lab.facts["ssh"], free_port(), plan["database"]
    forward = f"{port}:{there['internalHost']}:{there['internalPort']}"
    argv = ["ssh", "-F", "none", "-N", "-c", CIPHER, "-o", f"UserKnownHostsFile={ssh['known_hosts']}"]
    argv += ["-o", "BatchMode=yes", "-i", ssh["identity_file"], "-p", str(ssh["port"]), "-L", forward]
    with rig.running([*argv, f"{ssh['user']}@{ssh['host']}"]) as process:
        rig.wait_listening(port, process)
        yield port


def by_pg_dump(program, port, password, form, path):
    argv = [program, "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-d", "postgres", "-F", form, "-f", path]
    begun = time.perf_counter()
    subprocess.run(argv, env={**os.environ, "PGPASSWORD": password}, check=True)
    return time.perf_counter() - begun


def through_ssh(lab, plan, program, password, form, path):
    begun = time.perf_counter()
    with forwarded(lab, plan) as port:
        by_pg_dump(program, port, password, form, path)
        return time.perf_counter() - begun


def by_flux(lab, daemon, form, path):
    begun = time.perf_counter()
    done = daemon.flux("db", "dump", *PROJECT, "--format", form, "--output", str(path), env=lab.env, within_s=3600)
    took = time.perf_counter() - begun
    if done.returncode:
        raise RuntimeError(done.stderr)
    return took


def measure(lab, daemon, form, rounds):
    plan = daemon.flux_json("db", "access-plan", *PROJECT, env=lab.env)
    url = urlsplit(lab.dedicated_url)
    program, password = binaries.embedded(18).program("pg_dump"), unquote(url.password)
    path = daemon.home / "big"
    found = {"direct": [], "ssh -L": [], "flux": []}
    for _ in range(rounds):
        found["direct"].append(by_pg_dump(program, url.port, password, form, path))
        size = path.stat().st_size
        found["ssh -L"].append(through_ssh(lab, plan, program, password, form, path))
        found["flux"].append(by_flux(lab, daemon, form, path))
        path.unlink()
        print(f"{form}: {', '.join(f'{name} {times[-1]:.1f} s' for name, times in found.items())}", flush=True)
    return found, size


def ratio(found, over):
    ratios = [one / other for one, other in zip(found["flux"], found[over], strict=True)]
    return f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"


def table(found, options):
    yield f"{options.gigabytes} GB of rows, medians of {options.rounds} rounds, seconds; ratios paired by round."
    yield ""
    yield "| format | file | direct | `ssh -L` | `flux db dump` | flux / direct | flux / `ssh -L` |"
    yield "|---|---|---|---|---|---|---|"
    for form, (times, size) in found.items():
        cells = [f"{statistics.median(times[name]):.1f}" for name in ("direct", "ssh -L", "flux")]
        cells += [ratio(times, "direct"), ratio(times, "ssh -L")]
        yield f"| {form} | {size / 1e9:.2f} GB | {' | '.join(cells)} |"


def main():
    options = rig.options(__doc__, rounds=3, gigabytes=1.0).parse_args()
    # The very program that flux takes: the first of PATH, where the lab's own stands first.
    os.environ["PATH"] = f"{binaries.embedded(18).bin}:{os.environ['PATH']}"
    with world("--ssh", "openssh") as (lab, daemon):
        fill(lab.dedicated_url, options.gigabytes)
        found = {form: measure(lab, daemon, form, options.rounds) for form in FORMATS}
    rig.publish("bench-dump", table(found, options), options.write)


if __name__ == "__main__":
    main()
