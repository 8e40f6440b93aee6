"""The models a validator can judge: name, manifest hash, what an answer must look like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from emcd.accounting.verdict import NumericClass
from emcd.inference.manifest import EmbeddingManifest, model_hash
from emcd.inference.minilm import MINILM_MANIFEST
from emcd.types import Hash

KNOWN = {MINILM_MANIFEST.name: MINILM_MANIFEST}


@dataclass(frozen=True)
class JudgedModel:
    """One model with a reference."""

    manifest: EmbeddingManifest
    model_hash: Hash

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def numeric_class(self) -> NumericClass:
        return NumericClass(self.manifest.numeric_class)


def list_judged(names: Iterable[str]) -> Mapping[str, JudgedModel]:
    """The models of these names. Raises: KeyError for one without a reference."""
    return {name: JudgedModel(KNOWN[name], model_hash(KNOWN[name])) for name in names}
