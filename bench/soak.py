"""
`make soak`: minutes of everything at once, and what fluxd holds after each part; writes docs/reliability.md.

Clients that connect and are gone at once (at least 10 000, some with a few bytes, some with a reset), bulk that is read
to its end or broken off, another tunnel opened and closed, and a fault on the way to the SSH host, drawn from a seed.
Flat is what matters, counted when it is quiet: after no part more tasks, descriptors or channels than before the first,
and memory that does not grow from the second quarter to the last. If it is not so, the run fails and writes nothing.
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
import statistics
import sys
import time
from dataclasses import dataclass

import psycopg

from bench import rig
from bench.faults import NEVER, Fluxd, quiet, scene_for
from bench.world import world
from tests.furniture.faults import RST_ON_CLOSE

OTHER = ("foundry", "5774112")
AT_ONCE = 25
LEAVERS = 10_000
# A connection to the control plane is kept open for up to 30 s, for the next request; a part that needed one more than
# any before it has to wait for its end.
QUIET_WITHIN_S = 35
# What the allocator keeps of one part and gives back after another.
MEMORY_WAVERS_MB = 3.0


async def leave_early(contender, dice, times):
    """Connect and go: at once, after some bytes, or with a reset."""
    loop = asyncio.get_running_loop()

    async def once():
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", contender.port))
            if dice.random() < 0.5:
                await loop.sock_sendall(client, b"\0\0\0\x08\x04\xd2\x16\x2f")
            if dice.random() < 0.5:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)

    for begun in range(0, times, AT_ONCE):
        await asyncio.gather(*(once() for _ in range(min(AT_ONCE, times - begun))))


async def bulk(contender, dice):
    """Read a table of 20 MB, to its end or not."""
    async with await contender.connect() as connection, connection.cursor() as cursor:
        sql = "COPY (SELECT repeat('x', 999) FROM generate_series(1, 20000)) TO STDOUT"
        async with cursor.copy(sql) as copy:
            stop_after = dice.choice([1000, 10**9])
            async for number in numbered(copy):
                if number > stop_after:
                    break


async def numbered(rows):
    number = 0
    async for _ in rows:
        number += 1
        yield number


async def fault(scene, dice):
    """One that passes by itself; the next client finds the way again."""
    contender = scene.contender

    def wake():
        """After a night in which the connection lived."""
        os.kill(contender.pid, signal.SIGUSR2)

    def wake_stranded():
        scene.proxy.strand()
        wake()

    dice.choice([scene.proxy.cut, scene.proxy.hang_up, wake, wake_stranded])()
    assert await contender.until_query(time.monotonic()) != NEVER, "no client is served any more"


async def other_tunnel(contender):
    for words in (("tunnel", "open", OTHER[0], "--hash", OTHER[1]), ("tunnel", "close", OTHER[1])):
        done = await asyncio.to_thread(contender.daemon.flux, *words, env=contender.env)
        assert done.returncode == 0, done.stderr


async def part(scene, dice, leavers):
    contender = scene.contender
    async with asyncio.TaskGroup() as everything:
        everything.create_task(leave_early(contender, dice, leavers))
        everything.create_task(other_tunnel(contender))
        for _ in range(3):
            everything.create_task(survived(bulk(contender, dice)))
    await fault(scene, dice)


async def survived(work):
    """A client's own trouble when the way breaks, or when it breaks off, is no trouble of fluxd's."""
    with contextlib.suppress(psycopg.Error):
        await work


@dataclass(frozen=True)
class Row:
    """What it holds after a part, once it is quiet."""

    after_s: float
    leavers: int
    tasks: int
    descriptors: int
    channels: int
    memory_mb: float

    @property
    def countable(self):
        return self.tasks, self.descriptors, self.channels


async def counted(contender, after_s, leavers):
    found = await asyncio.to_thread(contender.daemon.flux_json, "status", env=contender.env)
    channels = sum(host["channels"] for host in found["hosts"])
    return Row(after_s, leavers, *contender.held(), channels, rig.rss_mb(contender.pid))


async def soak(lab, options):
    dice = random.Random(options.seed)
    async with scene_for(Fluxd, "soak", lab) as scene:
        contender = scene.contender
        for _ in range(3):  # what is loaded or grown once is no leak
            await part(scene, dice, options.leavers)
        await quiet(contender, contender.held())
        rows = [await counted(contender, 0, 0)]
        before, begun = contender.held(), time.monotonic()
        while rows[-1].after_s < options.minutes * 60 or rows[-1].leavers < LEAVERS:
            await part(scene, dice, options.leavers)
            await quiet(contender, before, within_s=QUIET_WITHIN_S)
            rows.append(await counted(contender, time.monotonic() - begun, rows[-1].leavers + options.leavers))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def growth_mb(rows):
    """From the second quarter to the last."""
    quarter = len(rows) // 4
    early, late = rows[quarter : 2 * quarter], rows[-quarter:]
    return statistics.median(row.memory_mb for row in late) - statistics.median(row.memory_mb for row in early)


def complaints(rows):
    """Why it is not flat."""
    first = rows[0]
    for row in rows[1:]:
        if any(now > then for now, then in zip(row.countable, first.countable, strict=True)):
            yield f"after {row.after_s:.0f} s {row.countable} tasks, descriptors, channels; before {first.countable}"
    if growth_mb(rows) > MEMORY_WAVERS_MB:
        yield f"memory grew by {growth_mb(rows):.1f} MB from the second quarter to the last"


def report(rows, options):
    parts, last = len(rows) - 1, rows[-1]
    yield f"{last.leavers} clients that left early, {parts} faults, {3 * parts} bulk reads, {parts} tunnels opened and"
    yield f"closed, in {last.after_s:.0f} s; seed {options.seed}. Memory from the second quarter to the last:"
    yield f"{growth_mb(rows):+.1f} MB."
    yield ""
    yield "| after | clients that left early | tasks | descriptors | channels | memory (RSS) |"
    yield "|---|---|---|---|---|---|"
    step = max(1, parts // 10)
    for row in [*rows[:-1:step], last]:
        countable = " | ".join(map(str, row.countable))
        yield f"| {row.after_s:.0f} s | {row.leavers} | {countable} | {row.memory_mb:.1f} MB |"


def main():
    options = rig.options(__doc__, minutes=4.0, leavers=400, seed=1).parse_args()
    with world("--ssh", "openssh") as (lab, _):
        rows = asyncio.run(soak(lab, options))
    if found := [*complaints(rows)]:
        sys.exit("Not flat:\n" + "\n".join(found))
    rig.publish("soak", report(rows, options), options.write)


if __name__ == "__main__":
    main()
