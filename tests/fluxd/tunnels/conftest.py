import pytest

from tests.fluxd.tunnels.rig import Rig


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
