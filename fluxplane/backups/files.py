"""
Where the files of backups are: ``<root>/<projectId>/<backupId>.dump``, as the contract has it, private to the plane.

A file's stamp (size, time, inode) says cheaply that it is the one whose checksum was seen to be right.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from fluxplane.backups.programs import Unable
from fluxplane.backups.store import Backup


@dataclass(frozen=True)
class Files:
    root: Path

    @property
    def work(self) -> Path:
        """Where verifications run. For root, another user must be able to pass through."""
        return self.root / ".work"

    def path(self, backup: Backup) -> Path:
        return self.root / backup.relative_path

    def room(self, project_id: uuid.UUID) -> Path:
        """
        The project's own directory, made with all above it.

        Raises:
            Unable: it cannot be made.
        """
        try:
            for place, mode in ((self.root, 0o711), (self.work, 0o711), (self.root / str(project_id), 0o700)):
                if not place.exists():
                    place.mkdir(parents=True, exist_ok=True)
                    place.chmod(mode if os.geteuid() == 0 else 0o700)
        except OSError as failure:
            raise Unable(f"The backups' directory {self.root} cannot be used: {failure.strerror}.") from failure
        return self.root / str(project_id)

    def stamp(self, backup: Backup) -> str | None:
        """None when there is no file."""
        try:
            found = self.path(backup).stat()
        except OSError:
            return None
        return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ino}"

    def remove(self, backup: Backup) -> None:
        """The file, and what a crash left of it; the project's directory with the last one."""
        path = self.path(backup)
        for one in (path, path.with_name(path.name + ".partial")):
            with contextlib.suppress(OSError):
                one.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()
