"""The client's virtue is how fast it starts: what it loads, and what that costs against a bare interpreter."""

import os
import resource
import subprocess
import sys

import pytest

from tests.furniture.processes import command

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
    loaded = loaded_by("import fluxctl.__main__, fluxctl.commands.tunnel, fluxctl.gui")
    assert loaded & FAST - loaded_by("pass") == set()


def test_tunnel_list_starts_within_twice_a_bare_interpreter(replay):
    """A ratio of CPU seconds, best of several, so that a busy machine does not decide it."""
    replay.says("GET /v1/tunnels", {"tunnels": []})
    env = {**os.environ, "FLUXD_SOCKET": str(replay.path)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    bare, ours = [sys.executable, "-c", "pass"], [command("flux"), "tunnel", "list"]
    _cpu_s(ours, env)  # writes the bytecode that an installed client has
    rounds = [(_cpu_s(bare, env), _cpu_s(ours, env)) for _ in range(9)]
    assert min(ours for _, ours in rounds) / min(bare for bare, _ in rounds) <= 2.0


def _cpu_s(argv, env):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, env=env, capture_output=True, check=True, timeout=30)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
