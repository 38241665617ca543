"""The client's replayed daemon, for what its start costs."""

from tests.fluxctl.conftest import home, replay

__all__ = ["home", "replay"]
