"""Of the user's ssh_config, what is not honoured is named."""

import subprocess

import pytest
from asyncssh.config import SSHClientConfig

from fluxd.tunnels.sshconfig import UNHONOURED, unhonoured
from tests.furniture.needs import needs_program


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config"

    def write(text):
        path.write_text(text)
        return path

    return write


def test_each_keyword_is_named_once_as_people_spell_it(config):
    path = config("controlmaster auto\nHost *\n ControlPath=~/.ssh/%C\n ControlMaster yes\n Port 22\n")
    assert unhonoured(path, "bastion") == ["ControlMaster", "ControlPath"]


def test_blocks_of_other_hosts_do_not_count(config):
    path = config("Host other !bastion *.example.com\n ControlMaster yes\nHost bast*\n LocalForward 1 h:2\n")
    assert unhonoured(path, "bastion") == ["LocalForward"]


def test_a_match_is_taken_to_apply_and_nothing_is_run(config, tmp_path):
    path = config(f'Match exec "touch {tmp_path}/ran"\n RevokedHostKeys /etc/revoked\n')
    assert unhonoured(path, "bastion") == ["RevokedHostKeys"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("value", "named"), [("yes", []), ("ask", []), ("no", ["StrictHostKeyChecking"])])
def test_strict_checking_is_what_we_do(config, value, named):
    assert unhonoured(config(f"StrictHostKeyChecking {value}\n"), "bastion") == named


def test_included_files_count(config, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.conf").write_text("DynamicForward 1080\n")
    assert unhonoured(config(f"Include {tmp_path}/more/*.conf\n"), "bastion") == ["DynamicForward"]


def test_a_file_that_includes_itself_ends(config, tmp_path):
    path = config("")
    path.write_text(f"Include {path}\nControlMaster yes\n")
    assert unhonoured(path, "bastion") == ["ControlMaster"]


def test_no_file_names_nothing(tmp_path):
    assert unhonoured(tmp_path / "none", "bastion") == []


def test_asyncssh_really_does_not_know_them():
    assert not {name.lower() for name in UNHONOURED} & set(SSHClientConfig._handlers)


# What a forward without a terminal has no use for, or does anyhow: neither asyncssh's nor worth a word.
HARMLESS = """
    addkeystoagent batchmode canonicalizepermittedcnames clearallforwardings connectionattempts enableescapecommandline
    escapechar exitonforwardfailure fingerprinthash forkafterauthentication forwardx11 forwardx11timeout gatewayports
    gssapikexalgorithms gssapirenewalforcesrekey gssapitrustdns hashknownhosts ipqos loglevel logverbose
    numberofpasswordprompts permitlocalcommand permitremoteopen sessiontype stdinnull streamlocalbindmask
    streamlocalbindunlink syslogfacility tunnel tunneldevice updatehostkeys visualhostkey xauthlocation
"""


def test_every_keyword_of_the_installed_ssh_is_honoured_named_or_harmless():
    """A newer ssh may have more: each is to be looked at."""
    needs_program("ssh")
    said = subprocess.run(["ssh", "-G", "-F", "none", "host"], capture_output=True, text=True, check=True).stdout
    keywords = {line.split()[0].lower() for line in said.splitlines()}
    assert keywords - set(SSHClientConfig._handlers) - {name.lower() for name in UNHONOURED} <= set(HARMLESS.split())
