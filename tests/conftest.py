"""The furniture of the house: real parts, named."""

import signal

# Where the tests are started in the background of a shell without job control, SIGINT comes ignored, and every program
# that a test interrupts would inherit that. A handler of ours is reset to the default by exec (signal(7)).
signal.signal(signal.SIGINT, signal.default_int_handler)

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
    "tests.furniture.transfers",
]
