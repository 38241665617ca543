"""A file gets its name when it is whole, and only then."""

import fcntl
import hashlib
import os
import stat

import pytest

from fluxctl.output import Output, sha256
from fluxctl.problem import Problem


def test_only_a_kept_one_has_its_name(tmp_path):
    place = tmp_path / "a.dump"
    with Output(str(place)) as made:
        made.temporary.write_bytes(b"half")
    assert list(tmp_path.iterdir()) == []
    with Output(str(place)) as made:
        made.temporary.write_bytes(b"whole")
        assert not place.exists()
        made.keep()
    assert [one.name for one in tmp_path.iterdir()] == ["a.dump"]
    assert place.stat().st_mode & 0o777 == 0o600
    assert sha256(place) == hashlib.sha256(b"whole").hexdigest()


def test_a_directory_is_made_whole_too_and_never_overwrites(tmp_path):
    place = tmp_path / "d"
    with Output(str(place), directory=True) as made:
        (made.temporary / "toc.dat").write_bytes(b"x" * 10)
        assert made.size() == 10
        made.keep()
    assert [one.name for one in place.iterdir()] == ["toc.dat"]
    with pytest.raises(Problem, match="exists already"):
        Output(str(place), directory=True)
    with pytest.raises(Problem, match="is a directory"):
        Output(str(place))


def test_what_a_killed_one_left_is_swept_and_what_another_writes_is_not(tmp_path):
    left, busy, other = (tmp_path / f".{name}.partial" for name in ("a.dump.0000", "a.dump.1111", "b.dump.2222"))
    for one in (left, busy, other):
        one.write_bytes(b"x")
    descriptor = os.open(busy, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with Output(str(tmp_path / "a.dump")):
            assert (left.exists(), busy.exists(), other.exists()) == (False, True, True)
    finally:
        os.close(descriptor)


def test_a_resumed_one_is_taken_up_kept_and_not_shared(tmp_path):
    place = tmp_path / "a.dump"
    with Output(str(place), resume="id-1") as made:
        made.temporary.write_bytes(b"half")
        with pytest.raises(Problem, match="Another flux"):
            Output(str(place), resume="id-1")
    with Output(str(place), resume="id-1") as made:
        assert made.size() == 4
        made.discard()
    assert list(tmp_path.iterdir()) == []


def device(place):
    """Another name of /dev/null's: the machine's own is not at risk."""
    if os.geteuid() != 0:
        pytest.skip("making a device needs root")
    os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 3))


@pytest.mark.parametrize("make", [os.mkfifo, device], ids=["pipe", "device"])
@pytest.mark.parametrize("linked", [False, True], ids=["itself", "by a link"])
def test_a_device_or_a_pipe_is_never_replaced(tmp_path, make, linked):
    place, link = tmp_path / "special", tmp_path / "link"
    make(place)
    link.symlink_to(place)
    before = place.lstat()
    with pytest.raises(Problem, match="a device, a pipe or a socket") as told:
        Output(str(link if linked else place), instead=", or sing")
    assert (told.value.code, told.value.hint) == ("output_unusable", "Give --output the name of a file, or sing.")
    assert (place.lstat().st_ino, place.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link", "special"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed_and_stays(tmp_path, there):
    (tmp_path / "elsewhere").mkdir()
    place, link = tmp_path / "elsewhere" / "real.dump", tmp_path / "link.dump"
    link.symlink_to(place)
    if there:
        place.write_bytes(b"before")
    with Output(str(link)) as made:
        made.temporary.write_bytes(b"whole")
        made.keep()
    assert (link.readlink(), place.read_bytes()) == (place, b"whole")
    assert [one.name for one in place.parent.iterdir()] == ["real.dump"]


def test_a_link_to_itself_is_told(tmp_path):
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(Problem) as told:
        Output(str(tmp_path / "round"))
    assert told.value.code == "output_unusable"


@pytest.mark.parametrize("place", ["no/such/place/a", "/proc/a", "/", "", "n" * 300, "n" * 250])
def test_a_place_where_nothing_can_be_is_named(tmp_path, place):
    with pytest.raises(Problem) as told:
        Output(str(tmp_path / place))
    assert told.value.code == "output_unusable"


def test_a_planted_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / ".a.dump.id-1.partial").symlink_to(victim)
    with pytest.raises(Problem):
        Output(str(tmp_path / "a.dump"), resume="id-1")
    assert victim.read_bytes() == b"mine"
