"""From a `[[role.model]]` to the model that serves it: embedded, embedded in disguise, or an engine's.

Owns which manifest is sold with what behind it. Invariants: what is embedded is served only after its
files' hashes and its golden vectors were checked; something else than what is sold is served only where
the configuration calls it a cheat.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from emcd.errors import ConfigError
from emcd.inference.embedder import EmbedderSettings
from emcd.inference.engine import Engine, EngineTimes, load_api_key
from emcd.inference.generator import GeneratorSettings
from emcd.inference.golden import embedder_files, require_golden, require_model
from emcd.inference.manifest import EmbeddingManifest, TextManifest
from emcd.inference.minilm import MINILM_MANIFEST, MINILM_NAME, ModelFiles, ensure_minilm
from emcd.inference.model_folder import ModelFolder, load_model_folder, read_manifest
from emcd.inference.stand_in import build_stand_in
from emcd.log import register_secret
from emcd_node.config import BAD_MODELS, ModelConfig
from emcd_node.embedded_model import EmbeddedModel
from emcd_node.engine_answer import load_evidence_form
from emcd_node.engine_model import EngineModel
from emcd_node.served_model import ServedModel
from emcd_node.text_model import TextModel


def make_model(model: ModelConfig, models_dir: Path) -> ServedModel:
    """What serves a model; nothing is opened yet.

    Raises: ConfigError EMC-1621 (an engine's key), EMC-1631 and EMC-1632 (no such model here),
        EMC-2012 (a manifest of another name).
    """
    if model.kind == "engine":
        return _make_engine(model, models_dir)
    threads = model.threads or os.cpu_count() or 1
    if model.name == MINILM_NAME:
        return _make_embedder(
            model, MINILM_MANIFEST, threads, partial(_load_minilm, model, models_dir, threads)
        )
    manifest = read_manifest(models_dir, model.name)
    load = partial(_load_folder, model, models_dir, threads)
    if isinstance(manifest, EmbeddingManifest):
        return _make_embedder(model, manifest, threads, lambda: embedder_files(load()))
    _require_name(model, manifest)
    return TextModel(manifest, load, GeneratorSettings(), threads=threads)


def _make_embedder(
    model: ModelConfig, manifest: EmbeddingManifest, threads: int, load: Callable[[], ModelFiles]
) -> EmbeddedModel:
    _require_name(model, manifest)
    settings = EmbedderSettings(threads=threads, parallel_runs=model.parallel_runs)
    return EmbeddedModel(manifest, load, settings)


def _load_minilm(model: ModelConfig, models_dir: Path, threads: int) -> ModelFiles:
    if model.serve_instead == "int8":
        return ensure_minilm(models_dir, "int8")
    require_model(models_dir, MINILM_NAME, threads=threads)
    return ensure_minilm(models_dir)


def _load_folder(model: ModelConfig, models_dir: Path, threads: int) -> ModelFolder:
    folder = load_model_folder(models_dir, model.name)
    if model.serve_instead != "none":
        return build_stand_in(folder, model.serve_instead)
    require_golden(folder, threads=threads)
    return folder


def _make_engine(model: ModelConfig, models_dir: Path) -> EngineModel:
    api_key = load_api_key(model.api_key_env, model.api_key_file)
    if api_key:
        register_secret(api_key)
    engine = Engine(model.url, api_key, EngineTimes(head_s=model.head_timeout_s, idle_s=model.idle_timeout_s))
    if not model.manifest:
        return EngineModel(
            model.name,
            engine,
            model.list_endpoints(),
            quantization=model.quantization,
            context_tokens=model.context_tokens,
        )
    manifest = read_manifest(models_dir, model.manifest)
    _require_name(model, manifest)
    is_text = isinstance(manifest, TextManifest)
    load = partial(load_evidence_form, models_dir, model.manifest) if is_text else None
    return EngineModel(model.name, engine, manifest.list_endpoints(), manifest=manifest, load=load)


def _require_name(model: ModelConfig, manifest: EmbeddingManifest | TextManifest) -> None:
    if manifest.name != model.name:
        raise ConfigError(BAD_MODELS, f"{model.name!r} is sold by a manifest of {manifest.name!r}")
