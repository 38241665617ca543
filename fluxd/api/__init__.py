"""HTTP on the Unix socket: a table of routes, who may ask, one short method per route, problems, the contract."""

from fluxd.api import heads
from fluxd.api.handlers import VERSION, Api, Organs
from fluxd.api.routes import ROUTES

__all__ = ["ROUTES", "VERSION", "Api", "Organs", "heads"]
