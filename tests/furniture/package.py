"""The package as people get it: an sdist, the wheel built from it, and a clean virtual environment with that wheel."""

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
    """`scripts` is the clean environment's bin directory; everyone may enter it."""

    sdist: Path
    wheel: Path
    scripts: Path


@pytest.fixture(scope="session")
def package() -> Iterator[Package]:
    with enterable_directory("flux-test-wheel-") as place:
        sdist = _built(ROOT, "sdist", place)
        with tarfile.open(sdist) as archive:
            archive.extractall(place, filter="data")
        wheel = _built(place / sdist.name.removesuffix(".tar.gz"), "wheel", place)
        environment = place / "venv"
        _run(sys.executable, "-m", "venv", "--without-pip", str(environment))
        _install(wheel, environment / "bin/python")
        yield Package(sdist, wheel, environment / "bin")


def _install(wheel: Path, python: Path) -> None:
    """With its dependencies in the versions of the lock: from uv's cache, from an index by uv, or by pip."""
    locked = wheel.parent / "locked.txt"
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked.write_text("\n".join(line.removesuffix(" \\") for line in lines if re.match(r"[a-z0-9]", line)))
    wanted = [f"--constraint={locked}", str(wheel)]
    uv, pip = BIN / "uv", [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet"]
    ways = [[str(uv), "pip", "install", "--quiet", f"--python={python}", *more] for more in (["--offline"], [])]
    said = ""
    for way in [*ways, pip] if uv.exists() else [pip]:
        done = subprocess.run([*way, *wanted], capture_output=True, text=True, timeout=300, check=False)
        if done.returncode == 0:
            return
        said += done.stderr
    raise AssertionError(said)


def _built(source: Path, target: str, into: Path) -> Path:
    _run(command("hatchling"), "build", "--target", target, "--directory", str(into), cwd=source)
    [found] = into.glob("*.tar.gz" if target == "sdist" else "*.whl")
    return found


def _run(*argv: str, cwd: Path | None = None) -> None:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
