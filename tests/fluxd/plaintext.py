"""A keyring backend that writes clear text, named as the one of keyrings.alt is."""

from __future__ import annotations

from keyring.backend import KeyringBackend


class PlaintextKeyring(KeyringBackend):
    priority = 0.5

    def get_password(self, service: str, username: str) -> str | None:
        raise AssertionError("never to be asked")

    def set_password(self, service: str, username: str, password: str) -> None:
        raise AssertionError("never to be used")
