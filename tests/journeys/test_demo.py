"""`make demo`'s program: it works, it shows what the README says it shows, and nothing of it is left."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.furniture.postgres import enterable_directory
from tests.furniture.processes import clean_environment, end, wait_until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "docs/demo.py"


@pytest.fixture
def place():
    with enterable_directory("flux-demo-test-") as home:
        yield home


def processes_of(place: Path) -> list[str]:
    """Command lines that name *place*."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if bytes(place) in words:
            found.append(words.replace(b"\0", b" ").decode())
    return found


def run_demo(place: Path, *, wrapper: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*wrapper, sys.executable, str(DEMO)],
        capture_output=True,
        text=True,
        env=clean_environment(place, TMPDIR=str(place), **environment),
        cwd=place,
        timeout=240,
        check=False,
    )


def test_the_demo_asks_both_modes_and_leaves_nothing(place):
    done = run_demo(place)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "Mode: v1_dedicated",
        "Mode: v2_shared (pooled)",
        "Connection Name: yeastcoast via Flux",
        "Connection Name: foundry via Flux",
        "Kveik Voss",
        "cast iron",
        '"tunnels": []',
    ):
        assert words in done.stdout
    assert done.stderr == ""
    assert list(place.iterdir()) == []
    assert processes_of(place) == []
    assert shape_of(done.stdout) == shape_of(readme_output()), (
        "README.md shows another output: `make demo`, and paste it"
    )


def readme_output() -> str:
    found = re.search(r"## What `make demo` shows\n\n```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def shape_of(output: str) -> list[str]:
    """Its lines without what differs from run to run: places, ports, names of roles and schemas, passwords, times."""
    changing = (
        (r"/\S*flux-demo-\w+", "PLACE"),
        (r"Password: [\w-]{32}$", "Password: SECRET"),
        (r"127\.0\.0\.1:\d+|Port:? \d+|-p \d+", "PORT"),
        (r"t_[0-9a-f]{12}_api", "SCHEMA"),
        (r"flux_temp_ro_5774112_[0-9a-f]{8}", "ROLE"),
        (r"t-[0-9a-f]{4,}", "ID"),
        (r"\d+ (seconds|min|B|KB)\b", "AMOUNT"),
        (r"Expires: .*", "Expires"),
        (r"Postgres \d+", "Postgres"),
        (r" +", " "),
    )
    for pattern, word in changing:
        output = re.sub(pattern, word, output, flags=re.MULTILINE)
    return [line.rstrip() for line in output.strip().splitlines()]


def test_the_demo_does_without_a_psql_of_the_systems(place):
    done = run_demo(place, PATH="/nonexistent")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Kveik Voss" in done.stdout


def test_what_leads_elsewhere_in_the_callers_environment_does_not_count(place):
    elsewhere = {
        "FLUX_API_BASE": "https://elsewhere.invalid",
        "FLUX_API_TOKEN": "flx_live_0123456789abcdef0123456789abcdef_33b0",
        "PGHOST": "elsewhere.invalid",
        "PGSSLMODE": "require",
        "DOCKER_HOST": "ssh://elsewhere.invalid",
    }
    assert run_demo(place, **elsewhere).returncode == 0


def test_a_demo_whose_lab_cannot_start_fails_aloud(place):
    """Here since no file may grow beyond 64 KB, which initdb cannot do without."""
    done = run_demo(place, wrapper=("sh", "-c", 'ulimit -f 128; exec "$@"', "sh"))
    assert done.returncode == 1
    assert "initdb failed" in done.stderr
    assert "The demo failed: the lab did not start" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(place.iterdir()) == []
    assert processes_of(place) == []


def test_an_interrupted_demo_leaves_nothing(place):
    with (place / "out").open("wb") as out:
        demo = subprocess.Popen(
            [sys.executable, str(DEMO)],
            stdout=out,
            stderr=out,
            env=clean_environment(place, TMPDIR=str(place)),
            cwd=place,
        )
    try:
        wait_until(lambda: "$ flux db tunnel foundry" in (place / "out").read_text(), "the second tunnel", within_s=120)
    finally:
        code = end(demo)
    assert code == 1
    assert "The demo failed: interrupted" in (place / "out").read_text()
    assert [path.name for path in place.iterdir()] == ["out"]
    assert processes_of(place) == []
