"""The client's restore gate means what the control plane's does: the same table, asked of the generated copy."""

import pytest

from fluxctl import gate
from tests.fluxplane.backups.test_gate import expected, outcome, table


@pytest.mark.parametrize(("name", "backups", "found", "flags"), list(table()))
def test_the_clients_gate_lets_through_what_the_planes_does(name, backups, found, flags):
    assert outcome(gate, backups, flags).allowed is expected(found, **flags)
