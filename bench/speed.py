"""
`make bench`: fluxd's forward against `ssh -L`, in turn, round by round, over the same sshd to the same target.

Every figure is a ratio to `ssh -L` with aes128-gcm *in the same round*, since machines have moods; the table shows the
median of the rounds. A round in which anything failed, or where bytes were missing, is INVALID and not counted; the
table says how many were. See docs/performance.md for what the rows mean.
"""

import contextlib
import os
import re
import select
import socket
import statistics
import subprocess
import sys
import time

from bench import rig
from bench.target import HEADER, receive, send

MB = 1_000_000
CONTENDERS = ("fluxd", "ssh aes128-gcm", "ssh default")
BASE = "ssh aes128-gcm"
PING = HEADER.pack(b"E", 0)


def contender(name, sshd, to):
    if name == "fluxd":
        return rig.fluxd(sshd, to)
    return rig.openssh(sshd, to, cipher="aes128-gcm@openssh.com" if name == BASE else None)


# ------------------------------------------------------------------------ loads


def connected(port):
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def stream(port, kind, count):
    """Bytes per second of one stream in one direction."""
    with connected(port) as connection:
        begun = time.perf_counter()
        connection.sendall(HEADER.pack(kind, count))
        if kind == b"D":
            receive(connection, count)
        else:
            send(connection, count)
            assert connection.recv(1) == b"k"
        return count / (time.perf_counter() - begun)


def ping_p50(port, count):
    """Seconds of one byte there and back, median."""
    times = []
    with connected(port) as connection:
        connection.sendall(PING)
        for _ in range(count):
            begun = time.perf_counter()
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def ping_beside(port, direction, count):
    argv = [sys.executable, "-S", str(rig.HERE / "target.py"), direction, str(port)]
    with rig.running(argv) as bulk:
        assert bulk.stdout.readline() == "begun\n"
        time.sleep(0.5)
        return ping_p50(port, count)


def connections_per_s(port, clients, count):
    """Connect, one byte there and back, close: so often in a second, with *clients* at a time."""
    poll, live, begun_count, done = select.epoll(), {}, 0, 0

    def begin():
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", port))
        live[connection.fileno()] = connection
        poll.register(connection.fileno(), select.EPOLLOUT)

    begun = time.perf_counter()
    for _ in range(min(clients, count)):
        begin()
        begun_count += 1
    while done < count:
        ready = poll.poll(30)
        assert ready, "no connection got on for 30 s"
        for number, event in ready:
            connection = live[number]
            if event & select.EPOLLOUT:
                connection.sendall(PING + b"x")
                poll.modify(number, select.EPOLLIN)
                continue
            assert connection.recv(1) == b"x"
            poll.unregister(number)
            live.pop(number).close()
            done += 1
            if begun_count < count:
                begin()
                begun_count += 1
    poll.close()
    return count / (time.perf_counter() - begun)


PG = {**os.environ, "PGPASSWORD": rig.PASSWORD, "PGUSER": "postgres", "PGDATABASE": "postgres", "PGHOST": "127.0.0.1"}


def copy_out(port, count):
    sql = f"COPY (SELECT repeat('x', 999) FROM generate_series(1, {count // 1000})) TO STDOUT"
    begun = time.perf_counter()
    with subprocess.Popen(["psql", "-XqAt", "-p", str(port), "-c", sql], env=PG, stdout=subprocess.PIPE) as psql:
        with psql.stdout as out:
            view, got = memoryview(bytearray(256 * 1024)), 0
            while more := out.readinto(view):
                got += more
        assert psql.wait() == 0
    assert got == count, f"{got} bytes of {count}"
    return count / (time.perf_counter() - begun)


def pgbench(port, seconds):
    argv = ["pgbench", "-C", "-S", "-n", "-c", "8", "-T", str(seconds), "-p", str(port)]
    said = subprocess.run(argv, env=PG, capture_output=True, text=True, check=True).stdout
    return float(re.search(r"tps = ([\d.]+) \(including", said)[1])


# ------------------------------------------------------------------------ rounds

# row: (less is better, goal)
ROWS = {
    "download, 1 stream (MB/s)": (False, 1.0),
    "upload, 1 stream (MB/s)": (False, 1.1),
    "psql COPY out (MB/s)": (False, 1.0),
    "1-byte ping p50 (µs)": (True, 1.15),
    "connections/s, 1 client": (False, 1.0),
    "connections/s, 8 clients": (False, 1.0),
    "connections/s, 64 clients": (False, 1.0),
    "pgbench -C, 8 clients (tps)": (False, 5.0),
    "ping p50 beside a download (µs)": (True, 0.7),
    "ping p50 beside an upload (µs)": (True, 0.7),
    "CPU s per GB down": (True, 1.0),
    "CPU s per GB up": (True, 1.0),
    "memory, one forward (MB, RSS)": (True, None),
}


def measure(forwarder, scale):
    raw, pg = forwarder.ports
    size = int(scale * 200) * MB
    found = {}
    for row, cpu_row, kind in (
        ("download, 1 stream (MB/s)", "CPU s per GB down", b"D"),
        ("upload, 1 stream (MB/s)", "CPU s per GB up", b"U"),
    ):
        before = forwarder.cpu_s()
        found[row] = stream(raw, kind, size) / MB
        found[cpu_row] = (forwarder.cpu_s() - before) / (size / 1e9)
    found["psql COPY out (MB/s)"] = copy_out(pg, size) / MB
    found["1-byte ping p50 (µs)"] = ping_p50(raw, int(1500 * scale)) * 1e6
    for clients in (1, 8, 64):
        noun = "client" if clients == 1 else "clients"
        found[f"connections/s, {clients} {noun}"] = connections_per_s(raw, clients, int((200 + 10 * clients) * scale))
    found["pgbench -C, 8 clients (tps)"] = pgbench(pg, max(1, int(4 * scale)))
    found["ping p50 beside a download (µs)"] = ping_beside(raw, "pull", int(300 * scale)) * 1e6
    found["ping p50 beside an upload (µs)"] = ping_beside(raw, "push", int(300 * scale)) * 1e6
    found["memory, one forward (MB, RSS)"] = forwarder.rss_mb()
    return found


def one_round(sshd, to, number, scale):
    """Every contender once, beginning with another one each round; None where one failed."""
    found = {}
    for place in range(len(CONTENDERS)):
        name = CONTENDERS[(place + number) % len(CONTENDERS)]
        print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
        try:
            with contender(name, sshd, to) as forwarder:
                found[name] = measure(forwarder, scale)
        except Exception as error:  # noqa: BLE001 - whatever it was, the round does not count
            print(f"round {number + 1}: {name}: {error!r}: INVALID", file=sys.stderr, flush=True)
            return None
    return found


def memory(sshd, to):
    """What fluxd holds: alone with one forward, with a hundred, and with a thousand idle clients."""
    with rig.fluxd(sshd, to[:1]) as one:
        alone = one.rss_mb()
        idle = []
        with contextlib.ExitStack() as stack:
            for _ in range(1000):
                idle.append(stack.enter_context(connected(one.ports[0])))
                idle[-1].sendall(PING + b"x")
                assert idle[-1].recv(1) == b"x"
            crowded = one.rss_mb()
    with rig.fluxd(sshd, to[:1] * 100) as hundred:
        many = hundred.rss_mb()
    with rig.openssh(sshd, to[:1], cipher="aes128-gcm@openssh.com") as ssh:
        return alone, many - alone, crowded - alone, ssh.rss_mb()


# ------------------------------------------------------------------------- table


def row_of(row, rounds):
    less, goal = ROWS[row]

    def middle(name):
        return statistics.median(one[name][row] for one in rounds)

    ratios = [one["fluxd"][row] / one[BASE][row] for one in rounds if one[BASE][row]]
    if not ratios:
        return f"| {row} | {middle('fluxd'):.3g} | {middle(BASE):.3g} | {middle('ssh default'):.3g} | - | - | - | - |"
    ratio, default = statistics.median(ratios), [one["fluxd"][row] / (one["ssh default"][row] or 1) for one in rounds]
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    met = "-" if goal is None else "yes" if (ratio <= goal if less else ratio >= goal) else "no"
    want = "-" if goal is None else f"{'≤' if less else '≥'} {goal}"
    values = f"{middle('fluxd'):.3g} | {middle(BASE):.3g} | {middle('ssh default'):.3g}"
    return f"| {row} | {values} | **{ratio:.2f}** ({spread}) | {statistics.median(default):.2f} | {want} | {met} |"


def table(rounds, tried, held):
    yield f"{len(rounds)} of {tried} rounds counted, {tried - len(rounds)} INVALID."
    yield ""
    yield "| | fluxd | `ssh -L` gcm | `ssh -L` default | fluxd / gcm: median (range) | fluxd / default | goal | met |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in ROWS:
        yield row_of(row, rounds)
    alone, hundred, crowd, ssh = held
    yield ""
    yield f"Memory of fluxd (RSS): {alone:.1f} MB with one forward; {hundred:+.1f} MB for 100 forwards;"
    yield f"{crowd:+.1f} MB for 1000 idle clients. One `ssh -L` holds {ssh:.1f} MB, and every tunnel is one."


def main():
    options = rig.options(__doc__, rounds=5, scale=1.0).parse_args()
    with rig.directory() as home, rig.postgres(home) as postgres, rig.target() as raw, rig.SSHD(home) as sshd:
        subprocess.run(["pgbench", "-i", "-q", "-p", str(postgres.port)], env=PG, capture_output=True, check=True)
        to = [raw, postgres.port]
        rounds = [one_round(sshd, to, number, options.scale) for number in range(options.rounds)]
        held = memory(sshd, to)
    counted = [one for one in rounds if one is not None]
    if not counted:
        sys.exit("Every round was INVALID.")
    rig.publish("bench", table(counted, len(rounds), held), options.write)


if __name__ == "__main__":
    main()
