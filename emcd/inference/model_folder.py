"""Models on disk: a folder for each, with its manifest and the files that the manifest names.

Owns `<models_dir>/<name>/`. It must not open a model. Invariants: a folder appears whole or not at
all (written beside, synced, renamed); one that is replaced is gone only when the new one stands, and comes
back at the next look where a crash came between; nothing is read from a folder whose files have another sha256
than the manifest says; no name leads out of its folder. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emcd.errors import ConfigError, RemoteProtocolError
from emcd.inference.manifest import (
    FILE_NAME,
    MANIFEST_FILE,
    CheckedManifest,
    EngineManifest,
    canonical_json,
    decode_manifest,
    find_manifest_fault,
    model_hash,
)
from emcd.inference.weights import compute_sha256, require_sha256
from emcd.types import Hash

MAX_GOLDEN_BYTES = 16 << 20
_OLD = ".old-"
"""What a folder is called from when it makes room until the new one stands: no model has such a name."""


@dataclass(frozen=True)
class ModelFolder:
    """A model whose files are all as its manifest says."""

    manifest: CheckedManifest
    model_hash: Hash
    path: Path

    def file(self, name: str) -> Path:
        """Where one of the manifest's files is. Raises: KeyError when it names no such file."""
        self.manifest.files[name]
        return self.path / name

    def read_golden(self) -> bytes:
        """The golden vectors' file. Raises: ConfigError EMC-1630 when the manifest has none."""
        golden = self.manifest.golden
        if not isinstance(golden, str):
            raise ConfigError("EMC-1630", f"{self.manifest.name}: its manifest names no golden vectors")
        path = self.file(golden)
        if path.stat().st_size > MAX_GOLDEN_BYTES:
            raise ConfigError("EMC-1630", f"{path} has more than {MAX_GOLDEN_BYTES} bytes")
        return path.read_bytes()


def load_model_folder(models_dir: Path, name: str) -> ModelFolder:
    """Read a model's folder; every file is hashed, so it takes a second a gigabyte.

    Raises: ConfigError EMC-1631 (no such model), EMC-1632 (its manifest can't be used), EMC-1601 and
        EMC-1602 (a file is missing, or another than the manifest names).
    """
    manifest, path = read_manifest(models_dir, name), models_dir / name
    for file, sha256 in manifest.files.items():
        require_sha256(path / file, sha256)
    return ModelFolder(manifest, model_hash(manifest), path)


def read_manifest(models_dir: Path, name: str) -> CheckedManifest:
    """The manifest alone, without looking at the files. Raises: ConfigError EMC-1631, EMC-1632."""
    path = models_dir / require_folder_name(name) / MANIFEST_FILE
    _bring_back(models_dir / name)
    try:
        manifest = decode_manifest(path.read_bytes())
    except FileNotFoundError as exc:
        raise ConfigError("EMC-1631", f"{name!r} in {models_dir}") from exc
    except OSError as exc:
        raise ConfigError("EMC-1632", f"{path}: {exc.strerror}") from exc
    except RemoteProtocolError as exc:
        raise ConfigError("EMC-1632", f"{path}: {exc.detail}") from exc
    if isinstance(manifest, EngineManifest):
        raise ConfigError("EMC-1632", f"{path} is of an engine's model: it has no files")
    return manifest


def list_models(models_dir: Path) -> tuple[str, ...]:
    """The names of the folders that have a manifest, sorted."""
    try:
        for old in models_dir.glob(f"{_OLD}*"):
            _bring_back(models_dir / old.name.removeprefix(_OLD))
        entries = sorted(entry.name for entry in models_dir.iterdir() if FILE_NAME.fullmatch(entry.name))
    except FileNotFoundError:
        return ()
    return tuple(name for name in entries if (models_dir / name / MANIFEST_FILE).is_file())


def write_model_folder(
    models_dir: Path,
    name: str,
    manifest: CheckedManifest,
    files: Mapping[str, bytes | Path],
    *,
    replace: bool = False,
) -> ModelFolder:
    """Write a folder, whole or not at all.

    Args:
        files: what the manifest names, as bytes, or as a path to copy from (linked where it can be).
        replace: take the place of a folder of that name; it is gone only when the new one is there.
    Raises: ConfigError EMC-1631 (no name for a folder), EMC-1632 (a manifest that nobody would read),
        EMC-1633 (there is such a folder), EMC-1602 (a file is not what the manifest says), EMC-1604.
    """
    target = models_dir / require_folder_name(name)
    if fault := find_manifest_fault(manifest):
        raise ConfigError("EMC-1632", f"{manifest.name[:80]}: {fault}")
    if set(files) != set(manifest.files):
        different = sorted(set(files) ^ set(manifest.files))
        raise ConfigError("EMC-1632", f"{manifest.name}: manifest and files differ in {different[0]}")
    _bring_back(target)
    if target.exists() and not replace:
        raise ConfigError("EMC-1633", str(target))
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".model-", dir=models_dir) as beside:
            part = Path(beside) / "new"
            _fill(part, manifest, files)
            _put_in_place(part, target)
    except OSError as exc:
        raise ConfigError("EMC-1604", f"{target}: {exc}") from exc
    return ModelFolder(manifest, model_hash(manifest), target)


def require_folder_name(name: str) -> str:
    """Raises: ConfigError EMC-1631 when it can't be a folder in the models' folder."""
    if FILE_NAME.fullmatch(name) is None:
        raise ConfigError("EMC-1631", f"{name[:80]!r} is no name for a folder")
    return name


def hash_files(files: Mapping[str, bytes | Path]) -> dict[str, str]:
    """sha256 (hex) by name, as a manifest has them. Raises: ConfigError EMC-1601."""
    return {
        name: hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else compute_sha256(source)
        for name, source in sorted(files.items())
    }


def _old_of(target: Path) -> Path:
    return target.with_name(_OLD + target.name)


def _put_in_place(part: Path, target: Path) -> None:
    """Raises: OSError; what stood there stands there again."""
    old = _old_of(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    try:
        part.rename(target)
    except OSError:
        _bring_back(target)
        raise
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _bring_back(target: Path) -> None:
    """Where a folder had made room and nothing came in its place, it is the model still."""
    if not target.exists():
        with contextlib.suppress(OSError):
            _old_of(target).rename(target)


def _fill(part: Path, manifest: CheckedManifest, files: Mapping[str, bytes | Path]) -> None:
    part.mkdir(mode=0o755)
    for name, source in files.items():
        path = part / name
        if isinstance(source, bytes):
            path.write_bytes(source)
        else:
            _take(source, path)
        require_sha256(path, manifest.files[name])
        _sync(path)
    (part / MANIFEST_FILE).write_bytes(canonical_json(manifest))
    _sync(part / MANIFEST_FILE)
    _sync(part)


def _take(source: Path, path: Path) -> None:
    """A copy; what lies in the models' folder already is linked: nobody ever writes into a model's file."""
    with contextlib.suppress(OSError):
        if source.resolve().is_relative_to(path.parents[2].resolve()):
            os.link(source, path)
            return
    shutil.copyfile(source, path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
