"""The client's virtue is how fast it starts: what it loads. What that costs: `test_client_instructions`."""

import subprocess
import sys

import pytest

HEAVY = {"asyncio", "aiohttp", "asyncssh", "asyncpg", "msgspec", "keyring", "argparse", "http", "ssl", "fluxplane"}
# Words whose start is held to less: what they do without.
FAST = {"re", "enum", "json", "socket", "typing", "subprocess", "threading", "signal", "datetime", "urllib", "pathlib"}


def loaded_by(statement: str) -> set[str]:
    script = f"{statement}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["client", "commands.tunnel", "commands.db", "commands.shell", "commands.project"])
def test_the_client_loads_nothing_but_the_standard_library(module):
    loaded = loaded_by(f"import fluxctl.__main__, fluxctl.{module}")
    before = loaded_by("pass")
    tops = {name.partition(".")[0] for name in loaded - before}
    assert tops - set(sys.stdlib_module_names) - {"fluxctl", "fluxd"} == set()
    assert {name for name in loaded if name.startswith("fluxd")} == {"fluxd", "fluxd.address"}
    assert tops & HEAVY == set()


def test_tunnel_and_status_load_next_to_nothing():
    loaded = loaded_by("import fluxctl.__main__, fluxctl.commands.tunnel, fluxctl.commands.db, fluxctl.gui")
    assert loaded & FAST - loaded_by("pass") == set()
