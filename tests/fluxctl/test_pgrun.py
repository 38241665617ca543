"""What pg_dump's and pg_restore's last words mean, and how they are ended."""

import os
import sys
import time
from pathlib import Path

import pytest

from fluxctl import pgrun
from fluxctl.problem import Problem
from tests.furniture.processes import alive

RLS = 'pg_dump: error: query failed: ERROR:  query would be affected by row-level security policy for table "invoices"'
SEQUENCE = "pg_dump: error: query failed: ERROR:  permission denied for sequence castings_id_seq"
CUT = "pg_dump: error: Dumping the contents of table failed.\nserver closed the connection unexpectedly"


@pytest.mark.parametrize(
    ("program", "said", "code", "words"),
    [
        ("pg_dump", RLS, "dump_blocked", "ledger, invoices"),
        ("pg_dump", SEQUENCE, "dump_blocked", "sequence castings_id_seq"),
        ("pg_dump", "could not write to file: No space left on device", "output_unusable", "No space left"),
        ("pg_dump", "pg_dump: error: aborting because of server version mismatch", "program_too_old", ""),
        ("pg_restore", "pg_restore: error: unsupported version (1.16) in file header", "program_too_old", ""),
        ("pg_dump", CUT, "dump_failed", "lost its connection"),
        ("pg_restore", "FATAL:  terminating connection due to administrator command", "restore_failed", "lost"),
        ("pg_restore", "ERROR:  permission denied for schema x", "restore_failed", "as it was before"),
        ("pg_restore", "ERROR:  could not extend file: No space left on device", "restore_failed", ""),
        ("pg_dump", "", "dump_failed", ""),
    ],
)
def test_last_words_are_understood(program, said, code, words):
    default = "dump_failed" if program == "pg_dump" else "restore_failed"
    problem = pgrun.failure(program, default, said, hidden=["ledger"])
    assert (problem.code, words in problem.message) == (code, True)


def test_a_program_that_talks_a_lot_is_heard_and_kept_short():
    heard = []
    script = "import sys; [print('step', n, file=sys.stderr) for n in range(5000)]; sys.exit('the last')"
    status, said = pgrun.run(
        [sys.executable, "-c", script],
        dict(os.environ),
        look=lambda: None,
        hear=lambda line: heard.append(line) is None and line.startswith("step 1"),
    )
    assert status == 1
    assert said.endswith("the last")
    assert len(heard) == 5001
    assert len(said.splitlines()) == 200


def test_whatever_ends_the_look_ends_the_program():
    class Enough(BaseException):
        pass

    others, pids = set(children()), []

    def look():
        pids.extend(pid for pid in children() if pid not in pids and pid not in others)
        raise Enough

    with pytest.raises(Enough):
        pgrun.run([sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ), look=look)
    assert pids
    give_up_at = time.monotonic() + 5
    while alive(pids) and time.monotonic() < give_up_at:
        time.sleep(0.02)
    assert alive(pids) == []


def children():
    return [int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(Problem, match="no-such-pg_dump"):
        pgrun.run(["/nowhere/no-such-pg_dump"], {}, look=lambda: None)
