"""What is in the packages: everything that runs, and nothing that does not belong to a user."""

import subprocess
import tarfile
import zipfile
from pathlib import Path

from tests.furniture.package import Package

ROOT = Path(__file__).resolve().parents[2]
UNITS = ("systemd/fluxd.socket", "systemd/fluxd.service", "launchd/com.flux.fluxd.plist")


def wheel_names(package: Package) -> set[str]:
    with zipfile.ZipFile(package.wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module_of_the_three_programs_and_nothing_else(package: Package) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "fluxctl", "fluxd", "fluxplane"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    shipped = {name for name in wheel_names(package) if ".dist-info/" not in name and "/units/" not in name}
    assert shipped >= set(tracked)
    assert {name for name in shipped if "test" in name or "__pycache__" in name} == set()


def test_the_wheel_holds_the_units_that_service_install_writes(package: Package) -> None:
    with zipfile.ZipFile(package.wheel) as archive:
        for name in (*UNITS, "docs/config.example.toml"):
            assert archive.read(f"fluxctl/units/{Path(name).name}") == (ROOT / name).read_bytes()


def test_licence_and_notice_go_along(package: Package) -> None:
    names = {Path(name).name for name in wheel_names(package) if ".dist-info/licenses/" in name}
    assert names == {"LICENSE", "NOTICE"}


def test_the_sdist_can_be_built_and_tested_from(package: Package) -> None:
    with tarfile.open(package.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ["Makefile", "requirements.lock", "NOTICE", "SECURITY.md", "CONTRIBUTING.md", ".importlinter"]
    assert set(wanted) - names == set()
    assert {"tests/conftest.py", "docs/operators.md", "systemd/fluxplane.service"} - names == set()


def test_a_clean_environment_has_all_four_commands(package: Package) -> None:
    for program in ("flux", "fluxctl", "fluxd"):
        done = subprocess.run(
            [package.scripts / program, "--version"], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.split()[0] in {program, "flux"}


def test_without_its_extra_fluxplane_says_what_to_install(package: Package) -> None:
    done = subprocess.run(
        [package.scripts / "fluxplane", "serve"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "flux-db-access[plane]" in done.stderr
    assert "Traceback" not in done.stderr
