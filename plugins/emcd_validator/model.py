"""The models a validator can judge: name, manifest hash, and where their files are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from emcd.accounting.token_check import Thresholds
from emcd.accounting.verdict import NumericClass
from emcd.inference.manifest import CheckedManifest, TextManifest, model_hash
from emcd.inference.minilm import MINILM_MANIFEST
from emcd.inference.model_folder import read_manifest
from emcd.types import Hash

BUILT_IN = {MINILM_MANIFEST.name: MINILM_MANIFEST}


@dataclass(frozen=True)
class JudgedModel:
    """One model with a reference.

    Args: `models_dir` the folder in which the model's own folder is.
    """

    manifest: CheckedManifest
    model_hash: Hash
    models_dir: Path = Path("models")

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def folder(self) -> Path:
        """Of a model that is not built in."""
        return self.models_dir / self.name

    @property
    def numeric_class(self) -> NumericClass:
        return NumericClass(self.manifest.numeric_class)

    @property
    def is_text(self) -> bool:
        return isinstance(self.manifest, TextManifest)


def list_judged(names: Iterable[str], models_dir: Path = Path("models")) -> dict[str, JudgedModel]:
    """The models of these names. Blocking.

    Raises: ConfigError EMC-1631, EMC-1632 for one that is not there or has no manifest that can be used.
    """
    return {name: find_judged(name, models_dir) for name in names}


def find_judged(name: str, models_dir: Path) -> JudgedModel:
    """One model by its name; its files are not looked at. Blocking. Raises: as `list_judged`."""
    manifest = BUILT_IN.get(name) or read_manifest(models_dir, name)
    return JudgedModel(manifest, model_hash(manifest), models_dir)


def thresholds_of(manifest: TextManifest) -> Thresholds:
    """The manifest's own."""
    row = manifest.thresholds
    return Thresholds(row.d_e12, row.m_e12, row.w_e12, row.first_e12)
