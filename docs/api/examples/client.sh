#!/bin/sh
# A client of fluxd with curl: open a tunnel, look at it, hear what happens, close it.
#   client.sh HASH        with FLUX_API_BASE, FLUX_API_TOKEN and FLUX_DB_TUNNEL_* as the platform gives them
set -eu
socket=${FLUXD_SOCKET:-${XDG_RUNTIME_DIR:-/run/user/$(id -u)}/fluxd/fluxd.sock}

# Every request: the version it speaks. A refusal is application/problem+json with code, message and hint.
ask() { curl --silent --show-error --fail-with-body --unix-socket "$socket" --header 'Flux-Api-Version: 1' "$@"; }
field() { printf '%s\n' "$(sed -n "s/.*\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/p")"; }

# The token goes in by stdin, not in an argument that every process list shows.
opened=$(ask --json @- http://localhost/v1/tunnels <<BODY
{"hash": "$1",
 "plane": {"api_base": "$FLUX_API_BASE", "token": "$FLUX_API_TOKEN"},
 "ssh": {"host": "$FLUX_DB_TUNNEL_SSH_HOST", "user": "$FLUX_DB_TUNNEL_SSH_USER", "port": $FLUX_DB_TUNNEL_SSH_PORT,
         "identity_file": "$FLUX_DB_TUNNEL_IDENTITY_FILE", "known_hosts": "$FLUX_DB_TUNNEL_KNOWN_HOSTS"}}
BODY
) || { echo "$opened" >&2; exit 1; }
id=$(printf %s "$opened" | sed 's/"lease".*//' | field id)
echo "$id is open"

ask "http://localhost/v1/tunnels/$id" | sed 's/"lease".*//' | field port

# One JSON object a line, first a snapshot; the stream goes on until somebody hangs up.
# (`head` hangs up, and curl says so with exit code 23.)
ask --no-buffer "http://localhost/v1/events?tunnel=$id" 2>/dev/null | head -n 1 | field name

ask --request DELETE "http://localhost/v1/tunnels/$id" >/dev/null
echo "$id is closed"
