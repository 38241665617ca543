"""
A Unix socket that answers what it was told to, byte for byte, and keeps what it was asked.

For what a client does with an answer: its text, its exit code, hostile bytes.
"""

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.furniture.processes import clean_environment, command


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: Any


@dataclass
class Replay:
    """
    `answers` by "METHOD target", each raw bytes or several in turn; `asked` in order.

    A target without an answer is a 404 problem.
    """

    home: Path
    answers: dict[str, bytes | list[bytes]] = field(default_factory=dict)
    asked: list[Request] = field(default_factory=list)
    hang_up: threading.Event = field(default_factory=threading.Event)

    @property
    def path(self) -> Path:
        return self.home / "s"

    def answer_to(self, question: str) -> bytes:
        """A list's answers are given one after another."""
        known = self.answers.get(question) or problem(404, "route_not_found")
        return known if isinstance(known, bytes) else known.pop(0)

    def says(self, question: str, body: Any, status: int = 200) -> None:
        self.answers[question] = answer(body, status)

    def streams(self, question: str, *events: Any) -> None:
        lines = b"".join(json.dumps(event).encode() + b"\n" for event in events)
        self.answers[question] = b"HTTP/1.1 200 OK\r\n\r\n" + lines

    def flux(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        env = clean_environment(self.home, FLUXD_SOCKET=str(self.path)) | environment
        return subprocess.run(
            [command("flux"), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=env,
            cwd=self.home,
            timeout=30,
            check=False,
        )


def answer(body: Any, status: int = 200) -> bytes:
    data = json.dumps(body).encode()
    return b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%s" % (status, len(data), data)


def problem(status: int, code: str, exit_code: int = 1, **more: str) -> bytes:
    return answer({"status": status, "code": code, "message": f"it is {code}", "exit_code": exit_code, **more}, status)


@contextlib.contextmanager
def replaying(home: Path) -> Iterator[Replay]:
    replay = Replay(home)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(replay.path))
        listener.listen(50)
        thread = threading.Thread(target=_serve, args=(listener, replay))
        thread.start()
        try:
            yield replay
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            replay.path.unlink()


def _serve(listener: socket.socket, replay: Replay) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(OSError):
            request = _read(connection)
            if request is None:
                continue
            replay.asked.append(request)
            question = f"{request.method} {request.target}"
            connection.sendall(replay.answer_to(question))


def _read(connection: socket.socket) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    return Request(method, target, headers, json.loads(body) if body else None)
