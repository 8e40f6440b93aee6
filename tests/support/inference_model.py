"""The embedded model, built once a machine and shared by every test that needs the real one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from emcd.inference.manifest import model_hash
from emcd.inference.minilm import MINILM_MANIFEST, ModelFiles, Variant, ensure_minilm


def shared_models_dir() -> Path:
    """A directory named after the model's hash; `ensure_minilm` checks what it finds there."""
    return (
        Path(tempfile.gettempdir())
        / f"emcd-test-models-{os.getuid()}-{model_hash(MINILM_MANIFEST).hex()[:16]}"
    )


def shared_model(variant: Variant = "fp32") -> ModelFiles:
    """The built model, from the shared directory."""
    return ensure_minilm(shared_models_dir(), variant)


@pytest.fixture(scope="session")
def fp32_files() -> ModelFiles:
    return shared_model()


@pytest.fixture(scope="session")
def int8_files() -> ModelFiles:
    return shared_model("int8")
