"""The log tells what happened, and never a secret."""

from __future__ import annotations

import io
import json
import logging

import pytest

from fluxd import logs


@pytest.fixture
def stream():
    root, ours = logging.getLogger(), logging.getLogger("fluxd")
    before = root.handlers[:], root.level, ours.level
    yield io.StringIO()
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
