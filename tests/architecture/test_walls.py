"""Who may import whom, and how little the client loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {"fluxctl", "fluxd", "fluxd.address"}
HEAVY = {"asyncio", "aiohttp", "asyncssh", "asyncpg", "msgspec", "keyring", "socket", "ssl", "argparse", "typing"}


def loaded_by(program: str) -> set[str]:
    """Every module that *program* loads beyond a bare interpreter, in a process of its own."""
    listing = "; import sys, json; print(json.dumps(sorted(sys.modules)))"
    bare = _modules("pass" + listing)
    return _modules(program + listing) - bare


def _modules(program: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )
    found: list[str] = json.loads(done.stdout)
    return set(found)


def test_the_import_rules_hold():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_import_rules_notice_a_breach(tmp_path: Path):
    """The rules are not vacuous: a client that reaches into the daemon breaks them."""
    for name in ("fluxctl", "fluxd", "fluxplane"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fluxctl" / "gui.py").write_text("from fluxd import wire\n")
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", ROOT / ".importlinter"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode != 0
    assert "fluxctl.gui -> fluxd.wire" in done.stdout


@pytest.mark.parametrize("module", ["fluxctl.client", "fluxctl.__main__"])
def test_the_client_loads_nothing_heavy(module: str):
    loaded = loaded_by(f"import {module}")
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("module", ["fluxctl.client", "fluxctl.__main__"])
def test_the_client_is_made_of_the_standard_library_alone(module: str):
    strange = {
        name
        for name in loaded_by(f"import {module}")
        if name.split(".")[0] not in sys.stdlib_module_names and name.split(".")[0] != "fluxctl" and name not in OURS
    }
    assert strange == set()


def test_every_module_of_the_client_is_made_of_the_standard_library_alone():
    modules = [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for path in (ROOT / "fluxctl").rglob("*.py")
    ]
    loaded = loaded_by("import " + ", ".join(sorted(modules)))
    strange = {
        name
        for name in loaded
        if name.split(".")[0] not in sys.stdlib_module_names and name.split(".")[0] != "fluxctl" and name not in OURS
    }
    assert strange == set()
    assert loaded & {"aiohttp", "asyncssh", "asyncpg", "msgspec", "keyring", "asyncio"} == set()


def test_importing_the_daemons_package_runs_nothing():
    source = (ROOT / "fluxd" / "__init__.py").read_text()
    assert loaded_by("import fluxd") == {"fluxd"}
    assert "import" not in source.split('"""')[2]
