"""One daemon per ledger: a lock that the kernel drops when its holder dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from emcd.errors import FatalError


class LedgerLock:
    """An exclusive lock beside the ledger file, held until `release`."""

    def __init__(self, ledger: Path) -> None:
        """Take the lock. Raises: FatalError EMC-1201 naming the holder's process id."""
        self.path = ledger.with_suffix(".lock")
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise FatalError("EMC-1201", f"{ledger} is in use by process {holder}") from None
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Give the lock back; the file stays, or a third process could lock another one."""
        os.close(self._descriptor)
