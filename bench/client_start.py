"""
`make bench-client`: what a command of the client costs before it does anything, in bare interpreter starts.

`python -c pass` and each command run in turn, many times, against a running daemon with a tunnel open. Told are the
medians of wall time and of processor time (user and system, the client's own) as ratios; milliseconds are this
machine's mood.
"""

import os
import statistics
import sys
import time

from bench import instructions, rig
from bench.world import command, world

# command: goal (docs/performance.md)
COMMANDS = {
    ("fluxctl", "tunnel", "list"): 2.0,
    ("fluxctl", "tunnel", "list", "--json"): 2.0,
    ("fluxctl", "status"): 2.0,
    ("fluxctl", "tunnel", "open", "yeastcoast", "--hash", "ffca33f"): 2.0,
    ("fluxctl", "tunnel", "show", "yeastcoast"): 4.0,
    ("flux", "db", "access-plan", "yeastcoast", "--hash", "ffca33f"): 4.0,
    ("flux", "db", "gui-config", "yeastcoast", "--hash", "ffca33f"): 4.0,
    ("flux", "db", "password", "yeastcoast", "--hash", "ffca33f"): 4.0,
    ("flux", "list"): 4.0,
    ("flux", "--help"): 4.0,
}
BARE = (sys.executable, "-c", "pass")


def once(argv, environment):
    """Wall and processor seconds of one run, which must succeed."""
    silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    begun = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, environment, file_actions=silent)
    _, status, used = os.wait4(pid, 0)
    wall = time.perf_counter() - begun
    if status:
        raise RuntimeError(f"{' '.join(argv)} failed")
    return wall, used.ru_utime + used.ru_stime


def main():
    options = rig.options(__doc__, rounds=30).parse_args()
    found = {}
    with world() as (lab, daemon):
        daemon.flux("tunnel", "open", "yeastcoast", "--hash", "ffca33f", env=lab.env).check_returncode()
        environment = daemon.environment | dict(lab.env)
        runs = {BARE: BARE} | {words: (command(words[0]), *words[1:]) for words in COMMANDS}
        for _ in range(options.rounds):
            for words, argv in runs.items():
                found.setdefault(words, []).append(once(argv, environment))
        counts = (
            {words: instructions.counted(argv, environment) for words, argv in runs.items()}
            if instructions.available()
            else {}
        )
    rig.publish("bench-client", table(found, options.rounds, counts), options.write)
    return 1 if any(counts[words] > goal * counts[BARE] for words, goal in COMMANDS.items() if counts) else 0


def table(found, rounds, counts):
    wall, cpu = (statistics.median(values) for values in zip(*found.pop(BARE), strict=True))
    yield f"{rounds} rounds; `python -c pass` took {wall * 1e3:.0f} ms, {cpu * 1e3:.0f} ms of it processor time."
    yield ""
    yield "| command | wall | processor | goal | met (wall) |"
    yield "|---|---|---|---|---|"
    for words, values in found.items():
        its_wall, its_cpu = (statistics.median(kind) for kind in zip(*values, strict=True))
        ratio, goal = its_wall / wall, COMMANDS[words]
        met = "yes" if ratio <= goal else "no"
        yield f"| `{' '.join(words)}` | {ratio:.2f} | {its_cpu / cpu:.2f} | ≤ {goal} | {met} |"


if __name__ == "__main__":
    main()
