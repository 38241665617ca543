import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.furniture.replay import Replay, replaying


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory whose path is short enough for a socket; gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix="flux-"))
    yield place
    shutil.rmtree(place)


@pytest.fixture
def replay(home: Path) -> Iterator[Replay]:
    with replaying(home) as server:
        yield server
