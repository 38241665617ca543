"""
Instructions that a command executes, as valgrind's cachegrind counts them: a busy machine changes nothing.

Only the command's own process is counted, not what it starts, and not what the kernel does for it.
"""

import re
import shutil
import subprocess

COUNT = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
WITHIN_S = 120


def available():
    return shutil.which("valgrind") is not None


def counted(argv, environment):
    """How many, of one run that must succeed."""
    done = subprocess.run(
        [*COUNT, *argv], env=environment, capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    found = re.search(r"I +refs: +([0-9,]+)", done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"{' '.join(argv)} failed under valgrind:\n{done.stderr}")
    return int(found[1].replace(",", ""))
