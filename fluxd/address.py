"""
Where fluxd's socket is. Standard library only: the client asks too, and must start fast.

The same answer as ``platformdirs.user_runtime_path("fluxd")``, which a test holds: on Linux
``$XDG_RUNTIME_DIR/fluxd``, else ``/run/user/<uid>/fluxd`` where that is ours, else a directory under the temporary one;
on macOS the state directory, since paths over 104 bytes cannot be bound there.
"""
