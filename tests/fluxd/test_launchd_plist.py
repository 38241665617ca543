"""launchd/: the agent is a valid plist with the keys it needs. launchd itself was not run: that needs a Mac."""

import plistlib
from pathlib import Path

PLIST = Path(__file__).resolve().parent.parent.parent / "launchd/com.flux.fluxd.plist"

# launchd.plist(5); a key that launchd does not know is ignored silently.
KNOWN = {
    "Label": str,
    "ProgramArguments": list,
    "EnvironmentVariables": dict,
    "Sockets": dict,
    "RunAtLoad": bool,
    "KeepAlive": bool,
    "ProcessType": str,
    "ExitTimeOut": int,
    "Umask": int,
    "SoftResourceLimits": dict,
    "StandardOutPath": str,
    "StandardErrorPath": str,
}


def agent() -> dict[str, object]:
    with PLIST.open("rb") as file:
        found = plistlib.load(file)
    assert isinstance(found, dict)
    return found


def test_every_key_is_one_of_launchds_with_its_type() -> None:
    assert {key: type(value) for key, value in agent().items()} == KNOWN


def test_the_label_is_the_files_name() -> None:
    assert agent()["Label"] == PLIST.stem


def test_the_socket_is_private_and_named_as_fluxd_asks_for_it() -> None:
    assert agent()["Sockets"] == {"api": {"SockPathName": "@SOCKET@", "SockPathMode": 0o600}}


def test_what_is_written_is_for_the_user_alone() -> None:
    assert agent()["Umask"] == 0o077


def test_it_is_not_slowed_down_as_background_work() -> None:
    assert agent()["ProcessType"] == "Standard"
