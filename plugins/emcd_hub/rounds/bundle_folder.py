"""Where the hub keeps its bundles: `<data_dir>/bundles/<round>-<hash8>.emcb`, later packed (.emcz).

Owns the folder's names and how a file comes into it. Invariants: a file with its final name is whole
and synced; what is not finished ends in `.partial` and is swept at the next start; which file is a
round's stands in the ledger alone, so a file that a crash left without a row is only waste.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from emcd.bundle_file import open_bundle
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.ledger import LedgerFile, describe_file
from emcd_hub.rounds.bundle_row import BundleFile
from emcd_hub.rounds.pack import PackedFile

_PARTIAL = ".partial"
PLAIN, PACKED, OWNERS = ".emcb", ".emcz", ".emco"
Content = bytes | mmap.mmap | PackedFile


@dataclass(frozen=True)
class BundleFolder:
    """The folder beside a ledger; `root` is what paths in the ledger are relative to. Blocking."""

    root: Path

    @property
    def path(self) -> Path:
        return self.root / "bundles"

    def prepare(self) -> None:
        """Make the folder, and sweep what a crash left unfinished."""
        self.path.mkdir(mode=0o700, exist_ok=True)
        for left in self.path.glob(f"*{_PARTIAL}"):
            left.unlink(missing_ok=True)

    def locate(self, path: str) -> Path:
        return self.root / path

    @contextmanager
    def writing(self, index: int) -> Iterator[tuple[BinaryIO, Path]]:
        """A new unfinished file and its path; removed unless `finish` took it."""
        self.path.mkdir(mode=0o700, exist_ok=True)
        descriptor, name = tempfile.mkstemp(_PARTIAL, f"{index}-", self.path)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                yield file, Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def finish(self, partial: Path, index: int, bundle_hash: bytes, suffix: str = PLAIN) -> LedgerFile:
        """Sync a written file and give it its name. Returns: what the ledger says of it."""
        target = self.path / f"{index}-{bundle_hash[:4].hex()}{suffix}"
        _sync(partial)
        partial.replace(target)
        _sync(self.path)
        return describe_file(self.root, target)

    @contextmanager
    def opened(self, file: BundleFile) -> Iterator[Content]:
        """A round's canonical bytes, whichever way they are kept.

        Raises: RecoverableError EMC-1755 when the file is not there, EMC-1756 when it is damaged.
        """
        path = self.locate(file.path)
        try:
            if file.packed:
                packed = PackedFile(path)
                try:
                    yield packed
                finally:
                    packed.close()
            else:
                with open_bundle(path) as data:
                    yield data
        except FileNotFoundError as exc:
            raise RecoverableError("EMC-1755", str(path)) from exc
        except RemoteProtocolError as exc:  # by whoever reads it: the hub wrote other bytes
            raise RecoverableError("EMC-1756", f"{path}: {exc.detail}") from exc


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
