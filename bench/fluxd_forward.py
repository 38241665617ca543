"""
fluxd's data path alone, as a process: its host connection and its forwards, without plane, leases or socket API.

A benchmark wants any upstream, and a tunnel proper only opens to this project's Postgres. Everything that a byte passes
is the daemon's own; the daemon's modules are imported too, so that its memory is told truly. One line of JSON says the
ports; it ends with SIGTERM.
"""

import argparse
import asyncio
import json
import os
import signal

import fluxd.__main__  # noqa: F401 - for its memory
from fluxd.clock import Clock
from fluxd.core.target import Target
from fluxd.tunnels.dial import Destination, Dialling
from fluxd.tunnels.forward import Forward, bind
from fluxd.tunnels.ssh import Host


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ssh-port", type=int, required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--identity-file", required=True)
    parser.add_argument("--known-hosts", required=True)
    parser.add_argument("--to", type=int, action="append", required=True, help="a port that the SSH host can reach")
    return parser.parse_args()


async def main(args):
    target = Target("127.0.0.1", args.user, args.ssh_port)
    destination = Destination(target, args.identity_file, args.known_hosts)
    host = Host(destination, Dialling(config=os.devnull), Clock(), lambda *_: None)
    await host.reach()
    forwards = []
    for port in args.to:
        open_channel = lambda factory, port=port: host.open_channel(factory, "127.0.0.1", port)  # noqa: E731
        forwards.append(Forward(bind("127.0.0.1", 0), open_channel=open_channel, observe=lambda *_: None))
        forwards[-1].start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    print(json.dumps([forward.port for forward in forwards]), flush=True)
    await ended.wait()
    for forward in forwards:
        forward.stop_listening()
        await forward.close_relays()
    await host.aclose()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
