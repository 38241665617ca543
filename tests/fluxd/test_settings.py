"""Environment over file over default; a mistake is told with file, line and reason."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st

from fluxd import settings
from fluxd.core.errors import SettingsInvalid

ROOT = Path(__file__).parents[2]


def load(directory: Path, text: str | None = None, **environ: str) -> settings.Settings:
    if text is not None:
        (directory / "config.toml").write_text(text)
    return settings.load({"FLUXD_CONFIG_DIR": str(directory), **environ})


def complaint(directory: Path, text: str, **environ: str) -> str:
    with pytest.raises(SettingsInvalid) as caught:
        load(directory, text, **environ)
    return caught.value.message


def test_without_a_file_everything_is_its_default(tmp_path: Path):
    found = load(tmp_path / "nowhere")
    assert (found.tunnels.first_port, found.log_level, found.declared) == (15432, "info", ())


def test_the_file_wins_over_the_default_and_the_environment_over_the_file(tmp_path: Path):
    found = load(tmp_path, 'first_port = 16000\nlog_level = "error"\n', FLUXD_LOG_LEVEL="debug")
    assert (found.tunnels.first_port, found.log_level) == (16000, "debug")
    sources = {name: source for name, _value, source in settings.shown(found)}
    assert sources["first_port"] == str(tmp_path / "config.toml")
    assert sources["log_level"] == "FLUXD_LOG_LEVEL"
    assert sources["ssh_connect_s"] == "default"
    assert sources["config_dir"] == "FLUXD_CONFIG_DIR"


def test_a_blank_variable_counts_as_unset(tmp_path: Path):
    assert load(tmp_path, "first_port = 16000\n", FLUXD_FIRST_PORT=" ").tunnels.first_port == 16000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLUXD_FIRST_PORT", "80abc"),
        ("FLUXD_FIRST_PORT", "0"),
        ("FLUXD_FIRST_PORT", "65536"),
        ("FLUXD_LOG_LEVEL", "loud"),
        ("FLUXD_LOG_FORMAT", "xml"),
        ("FLUXD_CLIENT_WAITS_S", "-1"),
        ("FLUXD_CLIENT_WAITS_S", "nan"),
        ("FLUXD_TOKEN_FILE", "relative"),
    ],
)
def test_a_variable_that_is_not_what_it_must_be_is_named(tmp_path: Path, name: str, value: str):
    assert complaint(tmp_path, "", **{name: value}).startswith(f"{name} is {value!r}")


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("first_port = \n", 1, "Invalid value"),
        ("# hello\n\nfirst_port = 0\n", 3, "$.first_port"),
        ('\nlog_level = "loud"\n', 2, "Invalid enum value 'loud'"),
        ("\n\nfrist_port = 1\n", 3, "frist_port"),
        (
            '[[tunnel]]\nproject = "a"\nhash = "5774112"\n[[tunnel]]\nproject = "b"\nhash = "xyz"\n',
            6,
            "$.tunnel[1].hash",
        ),
        ('\n[[tunnel]]\nproject = "a"\n', 2, "hash"),
        ('[[tunnel]]\nproject = "a"\nhash = "5774112"\nport = 99999\n', 4, "65535"),
        ('[[tunnel]]\nproject = "a"\nhash = "5774112"\napi_base = "http://10.0.0.1"\n', 4, "plain http"),
        ('[[tunnel]]\nproject = "a"\nhash = "5774112"\nssh = { host = "-oX" }\n', 4, "regex"),
        ('[[tunnel]]\nproject = "a"\nhash = "5774112"\n\n[[tunnel]]\nproject = "a"\nhash = "5774112"\n', 5, "again"),
        (
            (
                '[[tunnel]]\nproject = "a"\nhash = "5774112"\nport = 1\n'
                '[[tunnel]]\nproject = "b"\nhash = "0a1b2c3"\nport = 1\n'
            ),
            5,
            "the port of a",
        ),
    ],
)
def test_a_mistake_is_told_with_file_line_and_reason(tmp_path: Path, text: str, line: int, reason: str):
    said = complaint(tmp_path, text)
    assert said.startswith(str(tmp_path / "config.toml"))
    assert f":{line}:" in said or f"line {line}," in said
    assert reason in said


def test_a_file_that_is_not_text_is_told(tmp_path: Path):
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsInvalid, match="UTF-8"):
        load(tmp_path)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path):
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(SettingsInvalid, match="cannot be read"):
        load(tmp_path)


def test_declared_tunnels_are_read_with_their_bases_in_normal_form(tmp_path: Path):
    text = '[[tunnel]]\nproject = "foundry"\nhash = "5774112"\napi_base = "https://h/"\nport = 15440\n'
    (one,) = load(tmp_path, text).declared
    assert (one.project, one.hash, one.api_base, one.port, one.autostart) == (
        "foundry",
        "5774112",
        "https://h/api",
        15440,
        True,
    )


def uncommented(text: str) -> str:
    return "\n".join(line.removeprefix("# ") if "=" in line or "[[" in line else line for line in text.splitlines())


def test_the_example_is_the_defaults(tmp_path: Path):
    example = (ROOT / "docs" / "config.example.toml").read_text()
    assert load(tmp_path, example).tunnels == settings.TunnelSettings()
    shown = tomllib.loads(example)
    assert shown == {name: getattr(settings.File(), name) for name in shown}


def test_the_examples_commented_lines_are_right_too_and_name_every_setting(tmp_path: Path):
    example = (ROOT / "docs" / "config.example.toml").read_text()
    lines = [line for line in example.splitlines() if not line.startswith("# (") and "FLUXD_" not in line]
    text = uncommented("\n".join(lines))
    found = load(tmp_path, text)
    assert found.token_file is not None
    assert found.declared[0].ssh.host == "bastion.example.com"
    assert set(tomllib.loads(text)) == set(settings.File.__struct_fields__)
    assert set(tomllib.loads(text)["tunnel"][0]) == set(settings.DeclaredTunnel.__struct_fields__)


@given(st.text(max_size=120) | st.from_regex(r"(\[\[tunnel\]\]\n)?[a-z_]{1,12} = [ -~]{0,20}\n", fullmatch=True))
@how(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_file_crashes_it(tmp_path: Path, text: str):
    (tmp_path / "config.toml").write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    try:
        load(tmp_path)
    except SettingsInvalid as error:
        said = error.message
        assert said.startswith(str(tmp_path))
