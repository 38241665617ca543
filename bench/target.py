"""
What stands behind the tunnel in a benchmark, and the bulk loads that are best not made in the measuring process.

`serve` answers on a port of loopback: a connection begins with nine bytes, a letter and a count. ``D``: send so many
bytes. ``U``: take so many, then say one. ``E``: echo. `pull` and `push` are bulk clients that run until killed.
"""

import contextlib
import socket
import struct
import sys
import threading

HEADER = struct.Struct("!cQ")
BLOCK = bytes(256 * 1024)


def receive(connection, count):
    """Take *count* bytes; fewer is an error."""
    view = memoryview(bytearray(256 * 1024))
    while count:
        got = connection.recv_into(view, min(count, len(view)))
        if not got:
            raise ConnectionError(f"{count} bytes missing")
        count -= got


def send(connection, count):
    while count:
        count -= connection.send(memoryview(BLOCK)[: min(count, len(BLOCK))])


def answer(connection):
    with connection, contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        header = b""
        while len(header) < HEADER.size:
            more = connection.recv(HEADER.size - len(header))
            if not more:
                return
            header += more
        kind, count = HEADER.unpack(header)
        if kind == b"D":
            send(connection, count)
        elif kind == b"U":
            receive(connection, count)
            connection.sendall(b"k")
        while data := connection.recv(4096):
            connection.sendall(data)


def serve():
    threading.stack_size(256 * 1024)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=answer, args=(connection,), daemon=True).start()


def bulk(kind, port):
    print("begun", flush=True)
    while True:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(HEADER.pack(kind, 1 << 40))
            (receive if kind == b"D" else send)(connection, 1 << 40)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, ConnectionError):
        {"serve": serve, "pull": lambda: bulk(b"D", int(sys.argv[2])), "push": lambda: bulk(b"U", int(sys.argv[2]))}[
            sys.argv[1]
        ]()
