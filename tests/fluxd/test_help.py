"""What `fluxd --help` shows is taken."""

import shlex

import pytest

from fluxd import __main__ as program


@pytest.mark.parametrize("line", [line for line, _ in program.EXAMPLES])
def test_each_example_is_taken(line):
    words = shlex.split(line)
    program._arguments(words[words.index("fluxd") + 1 :])


def test_they_are_shown(capsys):
    with pytest.raises(SystemExit):
        program._arguments(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {line} " in shown for line, _ in program.EXAMPLES)
