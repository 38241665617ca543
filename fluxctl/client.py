"""
fluxd's routes, one typed call each.

A call opens one connection to the Unix socket, asks, and reads the answer; if nobody is there, the daemon is started
first (`fluxctl.start`). The plane and the SSH identity of the caller's shell go along, in a body on POST and PUT, in
headers on GET and DELETE. Every call raises `fluxctl.problem.Problem` and nothing else.
"""

from __future__ import annotations

from fluxctl import environment, quickjson
from fluxctl.exchange import Answer, Connection, Garbled, NobodyThere, quoted, request
from fluxctl.problem import Problem
from fluxd import address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any, Self, TypeVar

    from fluxd.shapes import (
        SSH,
        AskRestore,
        BackupList,
        BackupMade,
        BackupVerified,
        Doctor,
        Event,
        GrantMinted,
        HostKey,
        LoginAnswer,
        MintGrant,
        OpenTunnel,
        PlanAnswer,
        RenewTunnel,
        RestoreAllowed,
        SettingsAnswer,
        Status,
        Tunnel,
        TunnelClosed,
        TunnelOpened,
    )

    T = TypeVar("T")

# Longer than anything the daemon waits for itself while it answers one request.
ANSWER_WITHIN_S = 120.0
# A control plane that answers only when a backup is done may take five minutes.
DONE_WITHIN_S = 360.0
# As often as ssh does.
PASSPHRASES_ASKED = 3
# The daemon sends a `ping` event far more often than this.
EVENT_WITHIN_S = 90.0


class Client:
    """
    What a command asks fluxd. `env` says for which plane and with which SSH identity.

    `starts` False: a daemon that is not running is a problem, not a reason to start it.
    """

    def __init__(
        self, env: environment.Environment, *, starts: bool = True, answer_within_s: float = ANSWER_WITHIN_S
    ) -> None:
        self.env = env
        self._starts = starts
        # What opens which key, as a person has just said; and each that was asked for, as often.
        self._passphrases: dict[str, str] = {}
        self._asked: list[str] = []
        self._answer_within_s = answer_within_s

    def status(self) -> Status:
        found: Status = self._get("/v1/status")
        return found

    def expect_restart(self) -> None:
        """Have fluxd leave its tunnels and their roles to the next one, if it is stopped within a minute."""
        self._send("PUT", "/v1/restart", {})

    def settings(self) -> SettingsAnswer:
        found: SettingsAnswer = self._get("/v1/settings")
        return found

    def tunnels(self) -> list[Tunnel]:
        found: list[Tunnel] = self._get("/v1/tunnels")["tunnels"]
        return found

    def tunnel(self, name: str) -> Tunnel:
        """By id, slug, hash or port."""
        found: Tunnel = self._get(f"/v1/tunnels/{quoted(name)}")["tunnel"]
        return found

    def open(self, body: OpenTunnel) -> TunnelOpened:
        """*body* without `plane` and `ssh`, which are added. May ask a person for the passphrases of keys."""

        def ask() -> TunnelOpened:
            whole = {**body, "plane": self.env.plane(), "ssh": self._ssh()}
            found: TunnelOpened = self._send("POST", "/v1/tunnels", whole)
            return found

        return self._unlocking(ask)

    def close(self, name: str) -> TunnelClosed:
        found: TunnelClosed = self._delete(f"/v1/tunnels/{quoted(name)}")
        return found

    def forget(self, name: str) -> None:
        """Give the sticky port back."""
        self._delete(f"/v1/ports/{quoted(name)}")

    def renew(self, name: str, body: RenewTunnel) -> Tunnel:
        path = f"/v1/tunnels/{quoted(name)}/renew"
        # The tunnel's own plane decides; what the shell says goes along only if it speaks of the same one.
        same = self.tunnel(name)["api_base"] == self.env.api_base
        found: Tunnel = self._send("POST", path, {**body, "plane": self.env.plane()} if same else body)["tunnel"]
        return found

    def plan(self, project_hash: str, *, local_port: int | None = None) -> PlanAnswer:
        query = f"?local_port={local_port}" if local_port is not None else ""
        found: PlanAnswer = self._get(f"/v1/plans/{project_hash}{query}")
        return found

    def grant(self, project_hash: str, body: MintGrant) -> GrantMinted:
        found: GrantMinted = self._send("POST", f"/v1/grants/{project_hash}", {**body, "plane": self.env.plane()})
        return found

    def credentials(self, project_hash: str) -> dict[str, Any]:
        """The control plane's answer as it came, camelCase, tagged by `mode`."""
        found: dict[str, Any] = self._get(f"/v1/projects/{project_hash}/credentials")
        return found

    def projects(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get("/v1/projects")["projects"]
        return found

    def activity(self, project_hash: str, limit: int) -> dict[str, Any]:
        found: dict[str, Any] = self._get(f"/v1/projects/{project_hash}/activity?limit={limit}")
        return found

    def audit(self, project_hash: str | None = None, since: str | None = None) -> list[dict[str, Any]]:
        """What the plane recorded, newest first; of everything, or of one project, or *since* an instant."""
        found: list[dict[str, Any]] = self._get("/v1/audit" + _query(hash=project_hash, since=since))["events"]
        return found

    def project(self, project_hash: str) -> dict[str, Any]:
        found: dict[str, Any] = self._get(f"/v1/projects/{project_hash}")
        return found

    def backups(self, project_hash: str) -> BackupList:
        """Newest first, as the control plane says it (camelCase)."""
        found: BackupList = self._get(f"/v1/projects/{project_hash}/backups")
        return found

    def create_backup(self, project_hash: str) -> BackupMade:
        """Begun (`running`), or on a plane that cannot go on by itself, done."""
        path = f"/v1/projects/{project_hash}/backups?wait=0"
        found: BackupMade = self._send("POST", path, {"plane": self.env.plane()}, within_s=DONE_WITHIN_S)
        return found

    def verify_backup(self, project_hash: str, backup_id: str) -> BackupVerified:
        """As `create_backup`: `pending` when it goes on."""
        path = f"/v1/projects/{project_hash}/backups/{quoted(backup_id)}/verify?wait=0"
        found: BackupVerified = self._send("POST", path, {"plane": self.env.plane()}, within_s=DONE_WITHIN_S)
        return found

    def backup_progress(self, project_hash: str, backup_id: str) -> Stream:
        """Lines of `BackupProgress`."""
        return self._stream(f"/v1/projects/{project_hash}/backups/{quoted(backup_id)}/progress")

    def download_backup(self, project_hash: str, backup_id: str, *, start: int = 0) -> Stream:
        """The bytes of its file from *start* on."""
        path = f"/v1/projects/{project_hash}/backups/{quoted(backup_id)}/download"
        return self._stream(path, {"Range": f"bytes={start}-"} if start else {})

    def plain_dump(self, project_hash: str, options: Sequence[str]) -> Stream:
        """A v1 database as SQL; *options* are the contract's query words."""
        query = "&".join(f"{name}=1" for name in options)
        return self._stream(f"/v1/projects/{project_hash}/dump" + (f"?{query}" if query else ""))

    def ask_restore(self, project_hash: str, body: AskRestore) -> RestoreAllowed:
        path = f"/v1/projects/{project_hash}/restores"
        found: RestoreAllowed = self._send("POST", path, {**body, "plane": self.env.plane()})
        return found

    def end_restore(self, project_hash: str, restore_id: str, outcome: str) -> None:
        path = f"/v1/projects/{project_hash}/restores/{quoted(restore_id)}"
        self._send("POST", path, {"outcome": outcome, "plane": self.env.plane()})

    def doctor(self, project_hash: str | None = None) -> Doctor:
        found: Doctor = self._get("/v1/doctor" + _query(project=project_hash))
        return found

    def host_key(self) -> HostKey:
        """Which key on the way to the shell's SSH host is not known yet. May ask for the passphrases of keys."""

        def ask() -> HostKey:
            found: HostKey = self._get("/v1/hosts/key")
            return found

        return self._unlocking(ask)

    def login(self, token: str) -> LoginAnswer:
        found: LoginAnswer = self._send("PUT", "/v1/login", {"api_base": self.env.api_base, "token": token})
        return found

    def logout(self) -> LoginAnswer:
        found: LoginAnswer = self._delete("/v1/login")
        return found

    def events(self, *, tunnel: str | None = None, hold: str | None = None) -> Events:
        """The stream of events, of everything or of one tunnel; with *hold* it keeps that hold while it is open."""
        return Events(self._connect(EVENT_WITHIN_S), "/v1/events" + _query(tunnel=tunnel, hold=hold))

    # ----------------------------------------------------------------- the exchange

    def _get(self, target: str) -> Any:
        return self._exchange("GET", target, self._headers(), None)

    def _delete(self, target: str) -> Any:
        return self._exchange("DELETE", target, self._headers(), None)

    def _send(self, method: str, target: str, body: Mapping[str, Any], *, within_s: float | None = None) -> Any:
        return self._exchange(method, target, {}, body, within_s=within_s)

    def _stream(self, target: str, more: Mapping[str, str] | None = None) -> Stream:
        connection = self._connect(ANSWER_WITHIN_S)
        try:
            return Stream(connection, request("GET", target, {**self._headers(), **(more or {})}, None))
        except Problem as problem:
            raise self._explained(problem) from None

    def _unlocking(self, ask: Callable[[], T]) -> T:
        """What *ask* answers, once a person at the terminal has said what opens each key that is wanted for it."""
        while True:
            try:
                found = ask()
            except Problem as problem:
                self._learn_passphrase(problem)
            else:
                self._passphrases.clear()  # the daemon has them now
                return found

    def _learn_passphrase(self, problem: Problem) -> None:
        """
        Ask for the passphrase of the key that *problem* names.

        Raises:
            Problem: *problem* itself, if it is another one, nobody answers, or it was asked often enough.
        """
        path = problem.detail
        if problem.code != "ssh_key_encrypted" or not path or self._asked.count(path) == PASSPHRASES_ASKED:
            raise problem
        from fluxctl import passphrase  # noqa: PLC0415 - only where a person is asked

        said = passphrase.ask(path, again=problem.message if path in self._asked else None)
        if not said:
            raise problem
        self._asked.append(path)
        self._passphrases[path] = said

    def _ssh(self) -> SSH:
        ssh, opens = self.env.ssh(), self._passphrases
        said = [{"file": path, "passphrase": opens[path]} for path in opens]
        return {**ssh, "passphrases": said} if said else ssh  # type: ignore[typeddict-item]

    def _headers(self) -> dict[str, str]:
        plane, ssh = self.env.plane(), self._ssh()
        headers = {"Flux-Api-Base": plane["api_base"] or ""}
        if token := plane.get("token"):
            headers["Authorization"] = f"Bearer {token}"
        if ssh:
            headers["Flux-SSH"] = quickjson.dumps(ssh)
        return headers

    def _exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: Any, *, within_s: float | None = None
    ) -> Any:
        asked = request(method, target, headers, body)
        try:
            with self._connect(within_s or self._answer_within_s) as connection:
                connection.send(asked)
                connection.await_answer(method, target)
                return Answer(connection).json()
        except Garbled as error:
            raise _unusable(error) from error
        except Problem as problem:
            raise self._explained(problem) from None

    def _connect(self, answer_within_s: float) -> Connection:
        path = _socket_path()
        try:
            return Connection(path, answer_within_s=answer_within_s)
        except NobodyThere:
            if not self._starts:
                raise Problem("fluxd_not_running", "fluxd is not running.", detail=path) from None
        from fluxctl import screen, start  # noqa: PLC0415 - only when nobody is there

        screen.note("fluxd is not running; starting it.")
        return start.until_it_answers(lambda: Connection(path, answer_within_s=answer_within_s))

    def _explained(self, problem: Problem) -> Problem:
        """A refusal for want of a token says that there was one, and why it was kept back."""
        if problem.code == "not_authenticated" and (kept := self.env.withheld()):
            problem.detail = f"{problem.detail}\n{kept}" if problem.detail else kept
        return problem


class Stream:
    """A long answer, read piece by piece. Use as a context manager."""

    def __init__(self, connection: Connection, asked: bytes) -> None:
        """
        Raises:
            Problem: the daemon or the plane refuses.
        """
        self._connection = connection
        try:
            connection.send(asked)
            self._answer = Answer(connection)
            if not 200 <= self._answer.status < 300:
                self._answer.json()
        except Garbled as error:
            connection.close()
            raise _unusable(error) from error
        except BaseException:
            connection.close()
            raise
        self.status = self._answer.status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._connection.close()

    def pieces(self) -> Iterator[bytes]:
        """
        Raises:
            Garbled: it broke off, so that what came is not the whole.
        """
        return self._answer.pieces()

    def lines(self) -> Iterator[Any]:
        """The lines of an NDJSON stream; raises as `pieces`."""
        return (quickjson.loads(line) for line in self._answer.lines())


class Events:
    """A live events stream: iterate, and close (or use as a context manager) to let go of what it holds."""

    def __init__(self, connection: Connection, target: str) -> None:
        """
        Raises:
            Problem: the daemon refuses (hold_unknown, tunnel_not_found).
        """
        self._connection = connection
        try:
            connection.send(request("GET", target, {}, None))
            self._answer = Answer(connection)
            if self._answer.status != 200:
                self._answer.json()
        except Garbled as error:
            connection.close()
            raise _unusable(error) from error
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def fileno(self) -> int:
        """Whoever else has it open holds what we hold."""
        return self._connection.fileno()

    def hang_up(self) -> None:
        """As `Connection.hang_up`: for the thread that does not read."""
        self._connection.hang_up()

    def __iter__(self) -> Iterator[Event]:
        """Each event as it comes, without the pings; ends when the daemon ends the stream or goes away."""
        try:
            for line in self._answer.lines():
                event: Event = quickjson.loads(line)
                if event.get("name") != "ping":
                    yield event
        except (Garbled, ValueError):
            return


def _query(**values: str | None) -> str:
    asked = [f"{name}={quoted(value)}" for name, value in values.items() if value]
    return "?" + "&".join(asked) if asked else ""


def _socket_path() -> str:
    try:
        return address.socket_path()
    except PermissionError as error:
        raise Problem("socket_unsafe", detail=str(error)) from error


def _unusable(error: Garbled) -> Problem:
    return Problem("fluxd_not_running", "fluxd does not answer as it should.", detail=str(error))
