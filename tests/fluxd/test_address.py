"""The client and the daemon look for the socket in the same place, and it is the place platformdirs would name."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import platformdirs
import pytest

from fluxd import address

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="macOS uses the state directory: its paths are short")


def expected() -> str | type[Exception]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return str(platformdirs.user_runtime_path("fluxd"))
        except PermissionError:
            return PermissionError


def actual() -> str | type[Exception]:
    try:
        return address.runtime_dir()
    except PermissionError:
        return PermissionError


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory of the test's own, which `tempfile` believes in too."""
    home = tmp_path / "tmp"
    home.mkdir()
    monkeypatch.setenv("TMPDIR", str(home))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return home


def private(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True)
    path.chmod(0o700)
    return path


def test_the_socket_variable_wins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLUXD_SOCKET", "/somewhere/else.sock")
    assert address.socket_path() == "/somewhere/else.sock"


def test_a_relative_socket_variable_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLUXD_SOCKET", "x.sock")
    assert address.socket_path() == str(tmp_path / "x.sock")


def test_the_socket_is_called_fluxd_sock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, temporary: Path):
    monkeypatch.delenv("FLUXD_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private(tmp_path / "run")))
    assert address.socket_path() == str(tmp_path / "run" / "fluxd" / "fluxd.sock")


def test_without_a_runtime_directory_it_is_where_platformdirs_says(temporary: Path):
    assert actual() == expected()


@pytest.mark.parametrize("suffix", ["", "/", "/.", "//"])
def test_a_private_runtime_directory_is_used(tmp_path: Path, temporary: Path, monkeypatch, suffix: str):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private(tmp_path / "run")) + suffix)
    assert actual() == expected() == str(tmp_path / "run" / "fluxd")


def test_a_runtime_directory_that_is_not_there_yet_is_used(tmp_path: Path, temporary: Path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "later"))
    assert actual() == expected() == str(tmp_path / "later" / "fluxd")


@pytest.mark.parametrize("value", ["relative/run", "", "."])
def test_a_relative_runtime_directory_counts_as_none(temporary: Path, monkeypatch, value: str):
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    assert actual() == expected()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o1700, 0o500])
def test_a_runtime_directory_of_another_mode_is_judged_alike(tmp_path: Path, temporary: Path, monkeypatch, mode: int):
    private(tmp_path / "run").chmod(mode)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert actual() == expected()


def test_a_symlinked_runtime_directory_is_refused(tmp_path: Path, temporary: Path, monkeypatch):
    (tmp_path / "link").symlink_to(private(tmp_path / "run"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "link"))
    assert actual() == expected() != str(tmp_path / "link" / "fluxd")


def test_a_runtime_directory_below_one_that_everybody_writes_is_refused(tmp_path: Path, temporary: Path, monkeypatch):
    private(tmp_path / "open" / "run")
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "open" / "run"))
    assert actual() == expected() != str(tmp_path / "open" / "run" / "fluxd")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("shape", ["runtime", "fallback", "below-sticky"])
def test_a_directory_of_another_user_is_judged_alike(tmp_path: Path, temporary: Path, monkeypatch, shape: str):
    theirs = private(
        {
            "runtime": tmp_path / "run",
            "fallback": temporary / f"runtime-{os.geteuid()}",
            "below-sticky": tmp_path / "sticky" / "theirs" / "run",
        }[shape]
    )
    if shape == "below-sticky":
        (tmp_path / "sticky").chmod(0o1777)
        os.chown(theirs.parent, 65534, 65534)
    else:
        os.chown(theirs, 65534, 65534)
    if shape != "fallback":
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(theirs))
    assert actual() == expected()


def test_it_costs_no_more_than_the_interpreter_has_loaded_anyway():
    program = "import sys; before = set(sys.modules); import fluxd.address; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "['__future__', 'fluxd', 'fluxd.address']"
