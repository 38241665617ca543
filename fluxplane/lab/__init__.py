"""
A platform in a box, on loopback: for trying out, demos and tests. Never for production.

`box` puts the whole together, `postgres` runs its database servers, `sshhost` and `openssh` are its two kinds of SSH
host. What it needs beyond the control plane is in the extra `lab`.
"""
