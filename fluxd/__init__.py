"""The per-user daemon. Nothing is imported here, ever: `import fluxd.address` runs this file inside the tiny client."""
