import pytest

from fluxplane.lab.postgres import Server
from tests.fluxd.tunnels.rig import Rig


@pytest.fixture(scope="session")
def pool18(open18: Server) -> Server:
    """Never prepared: the plane of these tests mints by hand, and PUBLIC must be let in."""
    return open18


@pytest.fixture
async def rig(ssh_host, contract_plane, pool18, tmp_path):
    """On both kinds of SSH host."""
    rig = Rig(ssh_host, contract_plane, pool18, tmp_path / "state")
    yield rig
    await rig.close()


@pytest.fixture
async def small_rig(embedded, contract_plane, pool18, tmp_path):
    """On the embedded SSH host alone: for what does not depend on it."""
    rig = Rig(embedded, contract_plane, pool18, tmp_path / "state")
    yield rig
    await rig.close()
