"""The client's own answer to where things are is platformdirs' answer."""

import platformdirs
import pytest

from fluxctl import places

HOMES = [
    {"HOME": "/home/mary"},
    {"HOME": "/home/mary", "XDG_STATE_HOME": "/var/s", "XDG_CONFIG_HOME": "/var/c"},
    {"HOME": "/home/mary", "XDG_STATE_HOME": "  ", "XDG_CONFIG_HOME": ""},
]


@pytest.mark.parametrize("environ", HOMES)
def test_the_directories_are_platformdirs_own(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "FLUXD_STATE_DIR", "FLUXD_CONFIG_DIR", "FLUXD_LOG_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert places.state_dir() == platformdirs.user_state_path("fluxd")
    assert places.config_dir() == platformdirs.user_config_path("fluxd")
    assert places.log_dir() == platformdirs.user_log_path("fluxd")


def test_on_a_mac_they_are_platformdirs_own_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from platformdirs.macos import MacOS

    for name in ("FLUXD_STATE_DIR", "FLUXD_CONFIG_DIR", "FLUXD_LOG_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "darwin")
    theirs = MacOS("fluxd")
    assert places.state_dir() == theirs.user_state_path
    assert places.config_dir() == theirs.user_config_path
    assert places.log_dir() == theirs.user_log_path


def test_the_daemons_variables_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXD_STATE_DIR", "/a")
    monkeypatch.setenv("FLUXD_CONFIG_DIR", "/b")
    monkeypatch.setenv("FLUXD_LOG_DIR", "/c")
    assert [str(one) for one in (places.state_dir(), places.config_dir(), places.log_dir())] == ["/a", "/b", "/c"]
