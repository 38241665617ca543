""" "Write a client in 50 lines": the examples of docs/api, as they stand there, against a running fluxd."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab
from tests.furniture.needs import needs_program

pytestmark = pytest.mark.journey

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/api/examples"
RUN = {
    "client.sh": ["sh", "client.sh", "ffca33f"],
    "client.py": [sys.executable, "client.py", "ffca33f"],
    "client.mjs": ["node", "client.mjs", "ffca33f"],
    "client.lua": ["nvim", "--headless", "-u", "NONE", "-c", "luafile client.lua"],
}


def run(name: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    needs_program("curl" if name == "client.sh" else RUN[name][0])
    return subprocess.run(
        RUN[name],
        cwd=EXAMPLES,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("name", RUN)
def test_the_example_opens_looks_listens_and_closes(name: str, lab: Lab, daemon: Daemon) -> None:
    done = run(name, daemon.environment | dict(lab.env) | {"FLUX_HASH": "ffca33f"})
    assert done.returncode == 0, done.stdout + done.stderr
    # Neovim prints to stderr.
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    opened = re.fullmatch(r"(t-[0-9a-f]+) is open", said[0])
    assert opened is not None, said
    assert said[1:] == [said[1], "snapshot", f"{opened[1]} is closed"]
    assert int(said[1]) >= daemon.first_port
    assert daemon.flux_json("tunnel", "list")["tunnels"] == []


@pytest.mark.parametrize("name", RUN)
def test_the_example_fails_with_the_problems_code(name: str, lab: Lab, daemon: Daemon) -> None:
    wrong = {"FLUX_API_TOKEN": "flx_live_0123456789abcdef0123456789abcdef_33b0", "FLUX_HASH": "ffca33f"}
    done = run(name, daemon.environment | dict(lab.env) | wrong)
    assert done.returncode != 0
    assert "not_authenticated" in done.stdout + done.stderr


@pytest.mark.parametrize("name", RUN)
def test_the_example_has_at_most_50_lines_and_stands_in_the_page(name: str) -> None:
    text = (EXAMPLES / name).read_text().rstrip()
    assert len(text.splitlines()) <= 50
    assert f"\n{text}\n```\n" in (EXAMPLES.parent / "README.md").read_text()
