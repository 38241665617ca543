"""
`make soak`: minutes of everything at once, and what fluxd holds after each; writes docs/reliability.md.

Clients that connect and are gone at once (at least 10 000, some with a few bytes, some with a reset), bulk that is read
to its end or broken off, another tunnel opened and closed, and faults on the way to the SSH host, drawn from a seed.
Flat is what matters: tasks, descriptors and memory are counted when it is quiet, after each part.
"""

import asyncio
import contextlib
import random
import socket
import sys
import time

import psycopg

from bench import rig
from bench.faults import Fluxd, quiet, scene_for
from bench.world import world
from tests.furniture.faults import RST_ON_CLOSE

OTHER = ("foundry", "5774112")
AT_ONCE = 25


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
    dice.choice([scene.proxy.cut, scene.proxy.hang_up])()
    await scene.contender.until_query(time.monotonic())


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


async def soak(lab, options):
    dice, rows = random.Random(options.seed), []
    async with scene_for(Fluxd, "soak", lab) as scene:
        contender = scene.contender
        await part(scene, dice, 500)  # what is loaded or grown once is no leak
        await quiet(contender, contender.held())
        before = contender.held()
        rows.append((0, 0, *before, rig.rss_mb(contender.pid)))
        begun = time.monotonic()
        for number in range(1, options.parts + 1):
            await part(scene, dice, options.leavers // options.parts)
            await quiet(contender, before)
            rows.append((number, time.monotonic() - begun, *contender.held(), rig.rss_mb(contender.pid)))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def report(rows, options):
    yield f"{options.leavers} clients that left early, {options.parts} faults, {3 * options.parts} bulk reads, "
    yield f"{options.parts} tunnels opened and closed; seed {options.seed}."
    yield ""
    yield "| part | after | tasks | descriptors | memory (RSS) |"
    yield "|---|---|---|---|---|"
    for number, seconds, tasks, descriptors, memory in rows:
        yield f"| {number or 'before'} | {seconds:.0f} s | {tasks} | {descriptors} | {memory:.1f} MB |"


def main():
    options = rig.options(__doc__, parts=10, leavers=10_000, seed=1).parse_args()
    with world("--ssh", "openssh") as (lab, _):
        rows = asyncio.run(soak(lab, options))
    rig.publish("soak", report(rows, options), options.write)


if __name__ == "__main__":
    main()
