"""The log tells what happened, and never a secret."""

from __future__ import annotations

import io
import json
import logging
import stat
from pathlib import Path

import pytest

from fluxd import logs


@pytest.fixture
def stream():
    root, ours = logging.getLogger(), logging.getLogger("fluxd")
    before = root.handlers[:], root.level, ours.level
    yield io.StringIO()
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers[:], root.level, ours.level = before


@pytest.mark.parametrize(
    "text",
    [
        "flx_live_0123456789abcdef0123456789abcdef_33b0",
        "Authorization: Bearer hunter2abc",
        "postgres://postgres:hunter2abc@h:5432/postgres",
        "password=hunter2abc",
        '{"password": "hunter2abc"}',
        "PGPASSWORD='hunter2abc'",
        "SCRAM-SHA-256$4096:hunter2abc$k:s",
        "'token': 'hunter2abc'",
    ],
)
def test_what_looks_like_a_secret_is_cut_out(text: str):
    shown = logs.redacted(f"before {text} after")
    assert "hunter2abc" not in shown
    assert "0123456789abcdef" not in shown
    assert shown.startswith("before ")


def test_what_does_not_look_like_one_stays():
    text = "the token belongs to https://flux.example.com/api; password authentication failed for flux_temp_ro_x"
    assert logs.redacted(text) == text


def test_json_lines_are_json_one_a_line_with_the_trace_inside(stream: io.StringIO):
    logs.configure("info", "json", stream, journald=False)
    log = logging.getLogger("fluxd.test")
    log.debug("not shown")
    try:
        int("password=hunter2abc\nsecond line")
    except ValueError:
        log.exception("it failed\nbadly: Bearer hunter2abc")
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["logger"]) == ("error", "fluxd.test")
    assert entry["message"] == "it failed\nbadly: Bearer …"
    assert "ValueError" in entry["trace"]
    assert "hunter2abc" not in line


def test_under_journald_each_line_carries_its_severity(stream: io.StringIO):
    logs.configure("debug", "text", stream, journald=True)
    log = logging.getLogger("fluxd.test")
    log.warning("one\ntwo")
    log.debug("three")
    assert stream.getvalue().splitlines() == ["<4>fluxd.test: one", "<4>two", "<7>fluxd.test: three"]


def test_libraries_are_heard_from_warnings_on(stream: io.StringIO):
    logs.configure("debug", "text", stream, journald=False)
    logging.getLogger("asyncssh").info("chatter")
    logging.getLogger("asyncssh").warning("trouble")
    assert "chatter" not in stream.getvalue()
    assert "trouble" in stream.getvalue()


def test_the_file_is_private_and_turns_over_by_itself(stream: io.StringIO, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(logs, "LARGEST_FILE", 1000)
    logs.configure("info", "text", stream, journald=False, directory=tmp_path / "log")
    for n in range(100):
        logging.getLogger("fluxd.test").info("line %d password=hunter2abc", n)
    files = sorted((tmp_path / "log").iterdir())
    assert [file.name for file in files] == ["fluxd.log", "fluxd.log.1", "fluxd.log.2", "fluxd.log.3"]
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.stat().st_size <= 1000
        assert "hunter2abc" not in file.read_text()
    assert "line 99" in files[0].read_text()


def test_a_link_in_the_files_place_is_not_followed(stream: io.StringIO, tmp_path: Path):
    (tmp_path / "fluxd.log").symlink_to(tmp_path / "elsewhere")
    logs.configure("info", "text", stream, journald=False, directory=tmp_path)
    assert "no log is kept" in stream.getvalue()
    assert not (tmp_path / "elsewhere").exists()


def test_the_journal_is_known_by_its_stream_and_not_by_a_variable_alone(tmp_path: Path):
    with (tmp_path / "stderr").open("w") as stream:
        found = (tmp_path / "stderr").stat()
        assert logs.is_journal(stream, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        assert not logs.is_journal(stream, {"JOURNAL_STREAM": "1:1"})
        assert not logs.is_journal(stream, {})
    assert not logs.is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:1"})
