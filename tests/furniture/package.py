"""The package as people get it: an sdist, the wheel built from it, and a clean virtual environment with that wheel."""

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.furniture.postgres import enterable_directory
from tests.furniture.processes import command

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
        _run(command("uv"), "pip", "install", "--quiet", f"--python={environment / 'bin/python'}", str(wheel))
        yield Package(sdist, wheel, environment / "bin")


def _built(source: Path, target: str, into: Path) -> Path:
    _run(command("hatchling"), "build", "--target", target, "--directory", str(into), cwd=source)
    [found] = into.glob("*.tar.gz" if target == "sdist" else "*.whl")
    return found


def _run(*argv: str, cwd: Path | None = None) -> None:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
