"""Opening: the order that burns no role, and a query at its end."""

from tests.fluxd.tunnels.rig import V1_HASH, V2_HASH


async def test_a_v1_tunnel_carries_a_query(rig):
    opened = await rig.open(V1_HASH)
    assert opened.tunnel.state == "up"
    assert opened.credential is None
    assert opened.tunnel.lease is None
    assert opened.tunnel.username == "postgres"
    assert await rig.ask(opened) == "postgres"


async def test_a_v2_tunnel_carries_a_query_of_its_temporary_role(rig):
    opened = await rig.open(V2_HASH)
    assert opened.tunnel.state == "up"
    assert opened.credential is not None
    assert await rig.ask(opened) == opened.credential.username
    closed = await rig.up.close("foundry")
    assert closed.revoked
    assert closed.tunnel is not None
    assert closed.tunnel.state == "closed"
    assert rig.roles() == set()
