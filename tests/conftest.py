"""The furniture of the house: real parts, named."""

pytest_plugins = [
    "tests.furniture.faults",
    "tests.furniture.leaks",
    "tests.furniture.needs",
    "tests.furniture.postgres",
    "tests.furniture.sshd",
    "tests.furniture.daemon",
    "tests.furniture.lab",
    "tests.furniture.package",
    "tests.furniture.systemd",
    "tests.furniture.contract",
]
