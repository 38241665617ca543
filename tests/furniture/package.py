"""The package as people get it: an sdist, the wheel built from it, and that wheel installed by uv or by pip."""

import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.furniture.postgres import enterable_directory
from tests.furniture.processes import BIN, command

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Package:
    """`scripts` is the directory of its commands, in a clean environment; everyone may enter it."""

    sdist: Path
    wheel: Path
    scripts: Path

    def upgrade(self) -> None:
        """Installed anew, as a later version is."""
        _install(self.wheel)


@pytest.fixture(scope="session")
def package() -> Iterator[Package]:
    with enterable_directory("flux-test-wheel-") as place:
        sdist = _built(ROOT, "sdist", place)
        with tarfile.open(sdist) as archive:
            archive.extractall(place, filter="data")
        wheel = _built(place / sdist.name.removesuffix(".tar.gz"), "wheel", place)
        yield Package(sdist, wheel, _install(wheel))


def _install(wheel: Path) -> Path:
    """
    With its dependencies in the versions of the lock: by `uv tool install` from uv's cache or an index, or by pip.

    Answers where its commands are.
    """
    place = wheel.parent
    locked, scripts, environment = place / "locked.txt", place / "bin", place / "venv"
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked.write_text("\n".join(line.removesuffix(" \\") for line in lines if re.match(r"[a-z0-9]", line)))
    uv = BIN / "uv"
    where = {"UV_TOOL_DIR": str(place / "tools"), "UV_TOOL_BIN_DIR": str(scripts)}
    tool = [str(uv), "tool", "install", "--quiet", "--reinstall-package=flux-db-access", f"--python={sys.executable}"]
    for more in [["--offline"], []] if uv.exists() else []:
        said = _tried(*tool, *more, f"--constraints={locked}", str(wheel), **where)
        if said is None:
            return scripts
    _run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    pip = [sys.executable, "-m", "pip", f"--python={environment / 'bin/python'}", "install", "--quiet"]
    _run(*pip, "--force-reinstall", f"--constraint={locked}", str(wheel))
    return environment / "bin"


def _built(source: Path, target: str, into: Path) -> Path:
    _run(command("hatchling"), "build", "--target", target, "--directory", str(into), cwd=source)
    [found] = into.glob("*.tar.gz" if target == "sdist" else "*.whl")
    return found


def _run(*argv: str, cwd: Path | None = None) -> None:
    said = _tried(*argv, cwd=cwd)
    assert said is None, said


def _tried(*argv: str, cwd: Path | None = None, **environment: str) -> str | None:
    """None if it worked, else what it said."""
    done = subprocess.run(
        argv, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )
    return done.stdout + done.stderr if done.returncode else None
