"""Asks the control plane: plans, grants, credentials; and finds the token that belongs to each."""

from fluxd.plane.backups import BackupRoutes
from fluxd.plane.base import DEFAULT_API_BASE, Caller, normalised
from fluxd.plane.control import ControlPlane, Granted, Renewal
from fluxd.plane.tokens import Keychain, Tokens

__all__ = [
    "DEFAULT_API_BASE",
    "BackupRoutes",
    "Caller",
    "ControlPlane",
    "Granted",
    "Keychain",
    "Renewal",
    "Tokens",
    "normalised",
]
