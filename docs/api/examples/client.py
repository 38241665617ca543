"""A client of fluxd with Python's standard library: open a tunnel, look at it, hear what happens, close it."""

import contextlib
import http.client
import json
import os
import socket
import sys

RUNTIME = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
SOCKET = os.environ.get("FLUXD_SOCKET") or f"{RUNTIME}/fluxd/fluxd.sock"


class Fluxd(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(SOCKET)


def ask(method, path, body=None, read=json.load):
    """What *read* makes of the answer. A refusal is application/problem+json with code, message and hint."""
    headers = {"Flux-Api-Version": "1", "Content-Type": "application/json"}
    with contextlib.closing(Fluxd("localhost")) as connection:
        connection.request(method, path, json.dumps(body) if body else None, headers)
        with connection.getresponse() as answer:
            if answer.status < 400:
                return read(answer)
            problem = json.load(answer)
            sys.exit(f"{problem['code']}: {problem['message']}\n{problem.get('hint', '')}")


env = os.environ
ssh = {"host": env["FLUX_DB_TUNNEL_SSH_HOST"], "user": env["FLUX_DB_TUNNEL_SSH_USER"]}
ssh |= {"port": int(env["FLUX_DB_TUNNEL_SSH_PORT"]), "identity_file": env["FLUX_DB_TUNNEL_IDENTITY_FILE"]}
ssh |= {"known_hosts": env["FLUX_DB_TUNNEL_KNOWN_HOSTS"]}
plane = {"api_base": env["FLUX_API_BASE"], "token": env["FLUX_API_TOKEN"]}

name = ask("POST", "/v1/tunnels", {"hash": sys.argv[1], "plane": plane, "ssh": ssh})["tunnel"]["id"]
print(f"{name} is open")
print(ask("GET", f"/v1/tunnels/{name}")["tunnel"]["port"])
# One JSON object a line, first a snapshot; the stream goes on until somebody hangs up.
print(ask("GET", f"/v1/events?tunnel={name}", read=lambda events: json.loads(events.readline()))["name"])
ask("DELETE", f"/v1/tunnels/{name}")
print(f"{name} is closed")
