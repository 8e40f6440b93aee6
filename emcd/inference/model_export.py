"""An export from elsewhere (a folder of Hugging Face's files) as a model of this network.

Owns which files of an export count, and what a manifest says of them: a decoder with a KV cache and its
tokenizer become a text model, a graph that gives one vector a text becomes an embedder. Invariants: only
files that the answers depend on enter the manifest; what an export does not say is asked for, never
guessed; nothing of the export is executed but its graph. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from emcd.accounting.verdict import EMBED_TAU_E12, NumericClass
from emcd.errors import ConfigError
from emcd.inference.chat_template import ChatTemplate
from emcd.inference.decoder_session import DecoderSession, open_decoder
from emcd.inference.golden import make_embedding_golden
from emcd.inference.golden_tokens import make_text_golden
from emcd.inference.manifest import (
    CHAT_TEMPLATE_FILE,
    CLASS_THRESHOLDS,
    EMBEDDED_ENGINE,
    GOLDEN_FILE,
    GRAPH_FILE,
    TOKENIZER_FILE,
    CheckedManifest,
    EmbeddingManifest,
    NumericClassWord,
    TextManifest,
)
from emcd.inference.minilm import ModelFiles
from emcd.inference.model_folder import hash_files
from emcd.inference.session import EmbeddingSession
from emcd.inference.text_tokenizer import TextTokenizer
from emcd.inference.tokenizer import Tokenizer

GRAPHS = (GRAPH_FILE, f"onnx/{GRAPH_FILE}")
CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_MAX_SETTINGS_BYTES = 16 << 20

Files = Mapping[str, bytes | Path]


@dataclass(frozen=True)
class ExportWishes:
    """What the person who adds a model says of it; what is not said is read from the export.

    Args:
        context_tokens: 0: as the export's config.json says.
        stop_tokens: empty: the export's eos_token_id.
        engine: what will serve it; another than ours samples as it likes.
    """

    name: str
    context_tokens: int = 0
    stop_tokens: tuple[int, ...] = ()
    numeric_class: NumericClassWord = "fp32"
    quantization: str = ""
    engine: str = EMBEDDED_ENGINE
    engine_versions: str = ""


@dataclass(frozen=True)
class ReadExport:
    """A manifest and the files that it names, ready to be written as a model's folder."""

    manifest: CheckedManifest
    files: Files


def read_export(folder: Path, wishes: ExportWishes) -> ReadExport:
    """Read an export, run it for its golden vectors, and say what it is.

    Raises: ConfigError EMC-1635 (something is missing, or no graph that can be run here), EMC-1603, 1606,
        1650, 1652, 1653; RecoverableError EMC-1605, 1651.
    """
    graph = next((folder / name for name in GRAPHS if (folder / name).is_file()), None)
    if graph is None:
        raise ConfigError("EMC-1635", f"{folder} has no {GRAPH_FILE}")
    tokenizer = folder / TOKENIZER_FILE
    if not tokenizer.is_file():
        raise ConfigError("EMC-1635", f"{folder} has no {TOKENIZER_FILE}")
    files: dict[str, bytes | Path] = {
        GRAPH_FILE: graph,
        TOKENIZER_FILE: tokenizer,
        **{name: graph.parent / name for name in _list_external(graph)},
    }
    settings = {
        name: _read_settings(folder / f"{name}.json")
        for name in ("config", "generation_config", "tokenizer_config")
    }
    if _is_decoder(graph):
        return _read_decoder(folder, wishes, files, settings)
    return _read_embedder(wishes, files, settings)


def _read_decoder(
    folder: Path, wishes: ExportWishes, files: dict[str, bytes | Path], settings: Mapping[str, Any]
) -> ReadExport:
    graph, tokenizer = _path(files, GRAPH_FILE), _path(files, TOKENIZER_FILE)
    session, words = open_decoder(graph), TextTokenizer(tokenizer)
    context = wishes.context_tokens or _find_context(settings["config"])
    if context <= 0:
        raise ConfigError("EMC-1635", f"{folder} does not say how long its context is: give --context")
    stops = wishes.stop_tokens or _find_stops(settings)
    template = _find_template(folder, settings["tokenizer_config"])
    if template:
        ChatTemplate(template)
        files[CHAT_TEMPLATE_FILE] = template.encode()
    files[GOLDEN_FILE] = make_text_golden(graph, tokenizer, context_tokens=context, stop_tokens=stops)
    manifest = TextManifest(
        name=wishes.name,
        files=hash_files(files),
        context_tokens=context,
        vocab_tokens=_count_vocabulary(session),
        bos_token=_find_bos(words),
        stop_tokens=tuple(sorted(set(stops))),
        numeric_class=wishes.numeric_class,
        engine=wishes.engine,
        engine_versions=wishes.engine_versions,
        sampler="emcd-gumbel-v1" if wishes.engine == EMBEDDED_ENGINE else "engine",
        quantization=wishes.quantization or msgspec.UNSET,
        thresholds=CLASS_THRESHOLDS[wishes.numeric_class],
    )
    return ReadExport(manifest, files)


def _read_embedder(
    wishes: ExportWishes, files: dict[str, bytes | Path], settings: Mapping[str, Any]
) -> ReadExport:
    graph, tokenizer = _path(files, GRAPH_FILE), _path(files, TOKENIZER_FILE)
    context = wishes.context_tokens or _find_context(settings["config"])
    if context <= 0:
        raise ConfigError("EMC-1635", f"{graph} does not say how long a text may be: give --context")
    session = EmbeddingSession(graph, 1)
    vectors = session.run(Tokenizer(tokenizer, context).encode(["golden"]))
    if vectors.ndim != 2 or vectors.shape[0] != 1:
        raise ConfigError(
            "EMC-1635",
            f"{graph}: its first output is {list(vectors.shape)}, not one vector a text: export it with pooling",
        )
    length = float((vectors.astype("f8") ** 2).sum()) ** 0.5
    files[GOLDEN_FILE] = make_embedding_golden(ModelFiles(graph, tokenizer), context)
    manifest = EmbeddingManifest(
        name=wishes.name,
        files=hash_files(files),
        graph="onnx",
        dimension=int(vectors.shape[1]),
        max_tokens=context,
        pooling="graph",
        normalise=abs(length - 1) < 1e-3,
        numeric_class=wishes.numeric_class,
        tau_e12=EMBED_TAU_E12[NumericClass(wishes.numeric_class)],
        golden=GOLDEN_FILE,
    )
    return ReadExport(manifest, files)


def _path(files: Files, name: str) -> Path:
    source = files[name]
    assert isinstance(source, Path)
    return source


def _is_decoder(graph: Path) -> bool:
    """Whether text comes out; a decoder without a cache is one that can't be served, and is told so."""
    import onnx

    outputs = onnx.load(graph, load_external_data=False).graph.output
    return any(output.name == "logits" for output in outputs)


def _list_external(graph: Path) -> list[str]:
    """The files beside the graph that hold its weights. Raises: ConfigError EMC-1635, EMC-1606."""
    import onnx  # slow to import, and only needed to add a model
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    try:
        model = onnx.load(graph, load_external_data=False)
    except Exception as exc:  # protobuf's errors have no base of their own
        raise ConfigError("EMC-1606", f"{graph}: {exc}") from exc
    found = {
        ExternalDataInfo(tensor).location for tensor in model.graph.initializer if uses_external_data(tensor)
    }
    for name in found:
        if Path(name).name != name or not (graph.parent / name).is_file():
            raise ConfigError("EMC-1635", f"{graph} keeps weights in {name}, which is no file beside it")
    return sorted(found)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_SETTINGS_BYTES:
            raise ConfigError("EMC-1635", f"{path} has more than {_MAX_SETTINGS_BYTES} bytes")
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise ConfigError("EMC-1635", f"{path}: {exc}") from exc


def _find_context(config: Mapping[str, Any]) -> int:
    found = (config.get(name) for name in CONTEXT_FIELDS)
    return next((value for value in found if type(value) is int and value > 0), 0)


def _find_stops(settings: Mapping[str, Any]) -> tuple[int, ...]:
    """generation_config.json knows all ends of an answer; config.json often only one of them."""
    for name in ("generation_config", "config"):
        value = settings[name].get("eos_token_id")
        items = value if isinstance(value, list) else [value]
        if items and all(type(item) is int for item in items):
            return tuple(items)
    return ()


def _find_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str:
    """The chat template, or an empty text: the model completes only."""
    path = folder / CHAT_TEMPLATE_FILE
    if path.is_file():
        return path.read_text("utf-8")
    value = tokenizer_config.get("chat_template")
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else ""


def _find_bos(words: TextTokenizer) -> int | None:
    """What the tokenizer itself puts before every text."""
    with_it, without = words.encode("a", specials=True), words.encode("a", specials=False)
    is_put = len(with_it) > len(without) and words.is_special(with_it[0])
    return with_it[0] if is_put else None


def _count_vocabulary(session: DecoderSession) -> int:
    return session.vocab_tokens or int(session.prefill([0]).shape[1])
