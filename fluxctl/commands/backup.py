"""
`flux backup create|list|verify|download`: backups that the control plane makes, proves and keeps.

A create or verification goes on there when this command is interrupted; `backup list` shows how it went. A download
takes up an unfinished one of the same backup, and gets its name only when its checksum is right.
"""

from __future__ import annotations

from fluxctl import environment, hold, opening, output, screen
from fluxctl.client import Client
from fluxctl.exchange import Garbled
from fluxctl.options import Command, Option
from fluxctl.problem import Problem, interrupted, usage
from fluxctl.progress import Meter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fluxctl.options import Arguments
    from fluxctl.project import Project
    from fluxd.shapes import Backup

# A download that breaks off is taken up so often without a new byte.
_TRIES = 3


def create(arguments: Arguments) -> int:
    chosen, client = _asked(arguments)
    backup = client.create_backup(chosen.hash)["backup"]
    if backup["status"] in {"queued", "running"}:
        backup, _ = _followed(client, chosen, backup["id"], "Dumping")
    if backup["status"] != "complete":
        raise Problem("backup_failed", backup.get("error") or "The backup failed.")
    if arguments.json:
        screen.json({"backup": backup})
        return 0
    screen.section("Backup created")
    _print(backup)
    screen.line(f"Verify it: flux backup verify --id {backup['id']}")
    return 0


def verify(arguments: Arguments) -> int:
    chosen, client = _asked(arguments)
    chosen_id = _chosen(arguments, client, chosen)["id"]
    answer = client.verify_backup(chosen.hash, chosen_id)
    status = answer["restoreVerificationStatus"]
    if status == "pending":
        backup, failed = _followed(client, chosen, chosen_id, "Verifying")
        status = backup.get("restoreVerificationStatus") or "pending"
        if failed or status != "restore_verified":
            raise Problem("backup_failed", f"The backup is not verified: {failed or _why_not(backup)}")
    if arguments.json:
        screen.json({"ok": True, "backupId": chosen_id, "restoreVerificationStatus": status})
    else:
        screen.line(f"Backup {chosen_id}: {status}")
    return 0


def _why_not(backup: Backup) -> str:
    return backup.get("restoreVerificationError") or backup.get("artifactValidationError") or "it was not run."


def list_(arguments: Arguments) -> int:
    chosen, client = _asked(arguments)
    found = client.backups(chosen.hash)
    if arguments.json:
        screen.json(found)
        return 0
    if not found["backups"]:
        screen.line("No backups yet: `flux backup create` makes one.")
        return 0
    rows = [_row(one) for one in found["backups"]]
    screen.table(["ID", "CREATED", "STATUS", "SIZE", "FILE", "RESTORE"], rows)
    if arguments.verbose:
        for one in found["backups"]:
            screen.section(one["id"])
            _print(one)
    fresh = (found.get("platformMinimumBackupFreshness") or {}).get("freshness") or {}
    if detail := fresh.get("detail"):
        screen.line(str(detail))
    return 0


def _row(one: Backup) -> list[str]:
    size = one.get("sizeBytes")
    return [
        one["id"],
        one.get("createdAt") or "",
        one["status"],
        "" if size is None else screen.size(size),
        one.get("artifactValidationStatus") or "pending",
        one.get("restoreVerificationStatus") or "pending",
    ]


def _print(one: Backup) -> None:
    size = one.get("sizeBytes")
    facts = {
        "Id": one["id"],
        "Kind": one.get("kind"),
        "Status": one["status"],
        "Created": one.get("createdAt"),
        "Completed": one.get("completedAt"),
        "Size": None if size is None else screen.size(size),
        "SHA-256": one.get("checksumSha256"),
        "File": one.get("artifactValidationStatus"),
        "Restore": one.get("restoreVerificationStatus"),
        "Offsite": one.get("offsiteStatus"),
        "Error": one.get("error") or one.get("artifactValidationError") or one.get("restoreVerificationError"),
        "Offsite error": one.get("offsiteError"),
    }
    for name, value in facts.items():
        if value is not None:
            screen.line(f"{name}: {value}")


# ----------------------------------------------------------------------- download


def download(arguments: Arguments) -> int:
    chosen, client = _asked(arguments)
    backup = _chosen(arguments, client, chosen)
    if backup["status"] != "complete":
        raise Problem("backup_not_found", f"The backup is {backup['status']}, not complete.")
    hold.stop_on_signals()
    path = f"{chosen.name or chosen.hash}-{backup['id']}.dump" if arguments.output is None else arguments.output
    try:
        with output.Output(path, resume=backup["id"]) as made, Meter() as meter:
            _fetch(client, chosen, backup, made, meter)
            _check(made, backup, meter)
            made.keep()
    except KeyboardInterrupt as stop:
        raise interrupted(stop, "Interrupted; what came is kept, and the same command goes on there.") from stop
    if arguments.json:
        checksum = backup.get("checksumSha256")
        screen.json({"ok": True, "output": str(made.path), "backupId": backup["id"], "checksumSha256": checksum})
    else:
        screen.line(
            f"Backup {backup['id']} is in {made.path} ({screen.size(made.path.stat().st_size)}, checksum right)"
        )
    return 0


def _fetch(client: Client, chosen: Project, backup: Backup, made: output.Output, meter: Meter) -> None:
    """From where the file ends, again and again as long as something comes."""
    total = backup.get("sizeBytes")
    fruitless = 0
    while total is None or made.size() < total:
        before = made.size()
        broke = _fetch_once(client, chosen, backup, made, meter)
        if broke is None:
            return
        fruitless = 0 if made.size() > before else fruitless + 1
        if fruitless == _TRIES:
            raise Problem(
                "plane_unreachable",
                "The download broke off; what came is kept.",
                detail=str(broke),
                hint="Run the same command again: it goes on where it stopped.",
            )


def _fetch_once(client: Client, chosen: Project, backup: Backup, made: output.Output, meter: Meter) -> Garbled | None:
    """None when the stream came to its end, else how it broke off."""
    start = made.size()
    with client.download_backup(chosen.hash, backup["id"], start=start) as stream:
        try:
            with made.temporary.open("r+b") as file:
                # A plane that answers the whole although we asked for the rest.
                done = start if stream.status == 206 else 0
                file.truncate(done)
                file.seek(done)
                for piece in stream.pieces():
                    file.write(piece)
                    done += len(piece)
                    meter.bytes(done, backup.get("sizeBytes"))
        except Garbled as error:
            return error
        except OSError as error:
            raise output.unusable(made.path, error) from error
    return None


def _check(made: output.Output, backup: Backup, meter: Meter) -> None:
    wanted, size = backup.get("checksumSha256"), backup.get("sizeBytes")
    found = output.sha256(made.temporary, meter.reading)
    if size not in {None, made.size()} or wanted not in {None, found}:
        made.discard()
        raise Problem("download_damaged")


# --------------------------------------------------------------------- shared parts


def _asked(arguments: Arguments) -> tuple[Project, Client]:
    return opening.chosen_project(arguments), Client(environment.of_shell(arguments.values))


def _chosen(arguments: Arguments, client: Client, chosen: Project) -> Backup:
    if bool(arguments.id) == bool(arguments.latest):
        raise usage("Which backup? Give --id ID or --latest.")
    found = client.backups(chosen.hash)["backups"]
    for one in found:
        if arguments.latest or one["id"] == arguments.id:
            return one
    raise Problem("backup_not_found")


def _followed(client: Client, chosen: Project, backup_id: str, doing: str) -> tuple[Backup, str | None]:
    """The backup once nobody works on it any more, and why what was done with it failed."""
    last: dict[str, Any] = {}
    try:
        with client.backup_progress(chosen.hash, backup_id) as stream, Meter() as meter:
            for last in stream.lines():
                meter.show(f"{doing}: {last.get('phase') or 'starting'}, {screen.size(last.get('bytes') or 0)}")
    except Garbled as error:
        raise _goes_on(str(error)) from error
    except KeyboardInterrupt:
        screen.note("It goes on without this command; `flux backup list` shows how it went.")
        raise
    if not last.get("done"):
        raise _goes_on(None)
    backup: Backup = last["backup"]
    return backup, last.get("error")


def _goes_on(detail: str | None) -> Problem:
    return Problem(
        "plane_unreachable",
        "The control plane stopped telling how far it is.",
        detail=detail,
        hint="It may go on all the same: `flux backup list` shows how it went.",
    )


_FLAGS = (*opening.PROJECT_FLAGS, opening.API_BASE_FLAG, opening.JSON_FLAG)
_WHICH = (
    Option("--id", takes="ID", says="the backup's id"),
    Option("--latest", says="the newest one"),
)
COMMANDS = {
    "create": Command(create, positionals=("[NAME]",), options=_FLAGS),
    "list": Command(list_, positionals=("[NAME]",), options=(*_FLAGS, Option("--verbose", says="everything known"))),
    "verify": Command(verify, positionals=("[NAME]",), options=(*_WHICH, *_FLAGS)),
    "download": Command(
        download,
        positionals=("[NAME]",),
        options=(*_WHICH, Option("-o", "--output", takes="PATH", says="where to write (default: here)"), *_FLAGS),
    ),
}
