"""The reference control plane: mints and ends temporary roles, and speaks the platform's HTTP contract."""
