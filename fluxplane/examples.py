"""
The examples that `fluxplane … --help` ends with. Each is read by the parser itself in a test.

The secrets that a command needs stand in files that the environment names, never on a command line.
"""

from __future__ import annotations

from typing import Final

EXAMPLES: Final = {
    "fluxplane": ["fluxplane doctor", "fluxplane serve --listen 127.0.0.1:8787"],
    "fluxplane serve": ["fluxplane serve --listen 127.0.0.1:8787", "fluxplane serve --contract-only"],
    "fluxplane migrate": ["FLUXPLANE_CATALOGUE_ADMIN_URL_FILE=/root/catalogue-admin fluxplane migrate"],
    "fluxplane doctor": ["fluxplane doctor", "FLUXPLANE_POOL_ADMIN_URL_FILE=/root/pool-admin fluxplane doctor"],
    "fluxplane user": ["fluxplane user create alice@example.com"],
    "fluxplane user create": [
        "fluxplane user create alice@example.com",
        "fluxplane user create root@example.com --admin",
    ],
    "fluxplane token": ["fluxplane token create --user alice@example.com"],
    "fluxplane token create": ["fluxplane token create --user alice@example.com"],
    "fluxplane token list": ["fluxplane token list --user alice@example.com"],
    "fluxplane token revoke": ["fluxplane token revoke 7b0f2c51-4c56-4a41-9c2c-5a6b9a0f4d11"],
    "fluxplane project": ["fluxplane project list", "fluxplane project list --user alice@example.com"],
    "fluxplane project create": [
        "fluxplane project create --user alice@example.com --slug foundry --mode v2_shared",
        "fluxplane project create --user alice@example.com --slug yeastcoast --mode v1_dedicated --postgres-url url",
    ],
    "fluxplane project list": ["fluxplane project list", "fluxplane project list --user alice@example.com"],
    "fluxplane project delete": ["fluxplane project delete --user alice@example.com --hash 5774112"],
    "fluxplane pool": ["fluxplane pool prepare --dry-run", "fluxplane pool prepare"],
    "fluxplane pool prepare": [
        "fluxplane pool prepare --dry-run",
        "fluxplane pool prepare --allow reporting",
        "fluxplane pool prepare --functions-only",
    ],
    "fluxplane key": ["fluxplane key add", "fluxplane key rotate", "fluxplane key prune"],
    "fluxplane key add": ["fluxplane key add"],
    "fluxplane key rotate": ["fluxplane key rotate"],
    "fluxplane key prune": ["fluxplane key prune"],
    "fluxplane bastion-config": [
        "fluxplane bastion-config --key alice.pub --key bob.pub",
        "fluxplane bastion-config --user alice@example.com --hash ffca33f --docker",
    ],
    "fluxplane lab": ["fluxplane lab --dir ~/flux-lab", "fluxplane lab --ssh openssh --listen 127.0.0.1:8787"],
}


def of(prog: str) -> str:
    """The examples of *prog* as its help's last paragraph."""
    return "\n".join(["examples:", *(f"  {line}" for line in EXAMPLES[prog])])
