"""What a model is, exactly: the manifest whose hash users buy and validators recompute.

Owns the manifest's fields and its canonical bytes. It must not import onnxruntime: the hub reads
manifests without having a model. Invariants: one manifest has one byte form (sorted keys, no
spaces); `model_hash` is keccak of those bytes, so node, hub and validator agree on it; a file is
named without a folder and by its sha256; a field that is not set does not stand in the bytes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from itertools import chain
from typing import Final, Literal

import msgspec

from emcd.accounting.token_check import TEXT_THRESHOLDS
from emcd.errors import RemoteProtocolError
from emcd.proto.hashing import keccak
from emcd.proto.openai_shape import BASIC_ENDPOINTS, ENDPOINT_WORDS, Endpoint
from emcd.types import Hash

MAX_MANIFEST_BYTES = 16_384
MAX_NAME_CHARS = 256
MAX_ENDPOINTS = 32
MAX_FILES = 64
MAX_STOP_TOKENS = 64
MAX_VOCAB_TOKENS = 1 << 24
MAX_THRESHOLD_E12 = 10**13
EMBEDDED_ENGINE = "emcd-onnx"
GRAPH_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
GOLDEN_FILE = "golden.json"
MANIFEST_FILE = "manifest.json"
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
QUANTIZATION = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")
NumericClassWord = Literal["fp32", "fp16", "bf16"]
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENGINE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_VERSIONS = re.compile(r"[0-9A-Za-z.*+!=<>~,-]{0,64}")


class TextThresholds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an honest answer of a text model stays below, times 10**12. Source: VERIFICATION 3.

    Args:
        d_e12: mean distance of the reported log-probabilities.
        m_e12: mean margin by which other tokens than the sampler's were chosen.
        w_e12: the same in the worst 16 tokens.
        first_e12: distance of the log-probabilities at one position.
    """

    d_e12: int
    m_e12: int
    w_e12: int
    first_e12: int


CLASS_THRESHOLDS: Final = {
    str(numeric_class): TextThresholds(**thresholds._asdict())
    for numeric_class, thresholds in TEXT_THRESHOLDS.items()
}
"""What a text model's manifest says until the model is calibrated."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the thresholds rest on: so many honest answers, of so many machines."""

    answers: int
    machines: int


class EmbeddingManifest(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="embedding",
                        forbid_unknown_fields=True):  # fmt: skip
    """An embedding model that anyone can recompute.

    Args:
        files: sha256 (hex) by file name, of everything the vectors depend on.
        graph: name and version of the graph built from the weights; `onnx`: model.onnx is the graph.
        dimension: length of a vector.
        max_tokens: where a text is cut, special tokens included.
        numeric_class: the arithmetic a verdict's thresholds belong to.
        tau_e12: the largest relative L2 of an honest vector, times 10**12.
        golden: which of the files holds the golden vectors.
    """

    name: str
    files: dict[str, str]
    graph: str
    dimension: int
    max_tokens: int
    truncation: Literal["right"] = "right"
    pooling: Literal["mean", "graph"] = "mean"
    normalise: bool = True
    numeric_class: NumericClassWord = "fp32"
    tau_e12: int = 100_000_000
    golden: str | msgspec.UnsetType = msgspec.UNSET
    calibration: Calibration | msgspec.UnsetType = msgspec.UNSET

    def list_endpoints(self) -> frozenset[Endpoint]:
        """Where the model can be asked."""
        return frozenset((Endpoint.EMBEDDINGS,))


class TextManifest(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="text",
                   forbid_unknown_fields=True):  # fmt: skip
    """A model that writes text, and that anyone can recompute.

    Args:
        files: sha256 (hex) by file name, of everything the answers depend on: model.onnx (and what it
            refers to), tokenizer.json, golden.json, and chat_template.jinja where it can chat.
        context_tokens: prompt and answer together.
        vocab_tokens: the length of a row of logits.
        bos_token: what every prompt begins with, or None.
        stop_tokens: what ends an answer, ascending.
        truncation: none: a prompt that does not fit is refused.
        engine: what computes it: `emcd-onnx`, or the name of an engine of others.
        engine_versions: which of them, such as `>=1.20,<2`; empty: any.
        sampler: how tokens are chosen; `engine`: as it likes, so that only their log-probabilities
            and T = 0 can be judged.
        quantization: of the weights that are sold, where they are.
    """

    name: str
    files: dict[str, str]
    context_tokens: int
    vocab_tokens: int
    bos_token: int | None
    stop_tokens: tuple[int, ...]
    truncation: Literal["none"] = "none"
    numeric_class: NumericClassWord = "fp32"
    engine: str = EMBEDDED_ENGINE
    engine_versions: str = ""
    sampler: Literal["emcd-gumbel-v1", "engine"] = "emcd-gumbel-v1"
    quantization: str | msgspec.UnsetType = msgspec.UNSET
    thresholds: TextThresholds = CLASS_THRESHOLDS["fp32"]
    golden: str = GOLDEN_FILE
    calibration: Calibration | msgspec.UnsetType = msgspec.UNSET

    @property
    def can_chat(self) -> bool:
        """Whether it has a chat template."""
        return CHAT_TEMPLATE_FILE in self.files

    def list_endpoints(self) -> frozenset[Endpoint]:
        """Where the model can be asked."""
        chat = (Endpoint.CHAT,) if self.can_chat else ()
        return frozenset((Endpoint.COMPLETIONS, *chat))


class EngineManifest(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="engine",
                     forbid_unknown_fields=True):  # fmt: skip
    """A model behind an external engine: only its name is promised, nothing can be recomputed.

    A field that is not set does not stand in the manifest, whose hash stays what it was before there was
    such a field.

    Args:
        endpoints: what the engine serves of the model, sorted words of `Endpoint`; not set: chat,
            completions and embeddings.
        quantization: of the weights, as `provider.quantization` may ask for: fp16, int4, awq ...
        context_tokens: prompt and answer together.
    """

    name: str
    endpoints: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    quantization: str | msgspec.UnsetType = msgspec.UNSET
    context_tokens: int | msgspec.UnsetType = msgspec.UNSET

    def list_endpoints(self) -> frozenset[Endpoint]:
        """Words that this version does not know are passed over: a newer node may have them."""
        if isinstance(self.endpoints, msgspec.UnsetType):
            return BASIC_ENDPOINTS
        return frozenset(ENDPOINT_WORDS[word] for word in self.endpoints if word in ENDPOINT_WORDS)


def make_engine_manifest(
    name: str, endpoints: Collection[Endpoint], *, quantization: str = "", context_tokens: int = 0
) -> EngineManifest:
    """The manifest of an engine's model: one for the same promise, however it is put. "" and 0: not said."""
    words = tuple(sorted(endpoint.word for endpoint in endpoints))
    return EngineManifest(
        name=name,
        endpoints=msgspec.UNSET if frozenset(endpoints) == BASIC_ENDPOINTS else words,
        quantization=quantization or msgspec.UNSET,
        context_tokens=context_tokens or msgspec.UNSET,
    )


CheckedManifest = EmbeddingManifest | TextManifest
"""What a validator can recompute."""
Manifest = CheckedManifest | EngineManifest

_encoder = msgspec.json.Encoder(order="sorted")
_decoder: msgspec.json.Decoder[Manifest] = msgspec.json.Decoder(Manifest)


def canonical_json(manifest: Manifest) -> bytes:
    """The one byte form of a manifest."""
    return _encoder.encode(manifest)


def model_hash(manifest: Manifest) -> Hash:
    """What stands in forward records and node statuses for the model."""
    return keccak(canonical_json(manifest))


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest from a peer. Raises: RemoteProtocolError EMC-1610 when it is none, or not canonical."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise RemoteProtocolError("EMC-1610", f"{len(data)} bytes")
    try:
        manifest = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1610", str(exc)) from exc
    if fault := find_manifest_fault(manifest):
        raise RemoteProtocolError("EMC-1610", f"{manifest.name[:80]}: {fault}")
    if canonical_json(manifest) != data:
        raise RemoteProtocolError("EMC-1610", f"{manifest.name[:80]}: not in canonical form")
    return manifest


def find_manifest_fault(manifest: Manifest) -> str:
    """What no manifest may say and this one does, or an empty text."""
    if not 0 < len(manifest.name) <= MAX_NAME_CHARS:
        return f"a name of {len(manifest.name)} characters"
    if isinstance(manifest, EngineManifest):
        return next(_engine_faults(manifest), "")
    if isinstance(manifest, TextManifest):
        return next(chain(_file_faults(manifest), _text_faults(manifest)), "")
    return next(chain(_file_faults(manifest), _embedding_faults(manifest)), "")


def _engine_faults(manifest: EngineManifest) -> Iterator[str]:
    words, context = manifest.endpoints, manifest.context_tokens
    if not isinstance(words, msgspec.UnsetType) and (
        not 0 < len(words) <= MAX_ENDPOINTS or list(words) != sorted(set(words))
    ):
        yield "endpoints must be sorted, each once"
    yield from _quantization_faults(manifest.quantization)
    if not isinstance(context, msgspec.UnsetType) and not 0 < context < 2**31:
        yield "context_tokens must be positive"


def _quantization_faults(kind: str | msgspec.UnsetType) -> Iterator[str]:
    if not isinstance(kind, msgspec.UnsetType) and QUANTIZATION.fullmatch(kind) is None:
        yield "quantization must be a word in lower case"


def _file_faults(manifest: CheckedManifest) -> Iterator[str]:
    if len(manifest.files) > MAX_FILES:
        yield f"more than {MAX_FILES} files"
    for name, sha256 in manifest.files.items():
        if FILE_NAME.fullmatch(name) is None or name == MANIFEST_FILE or _SHA256.fullmatch(sha256) is None:
            yield f"{name[:80]!r} is no file with its sha256"
    golden = manifest.golden
    if not isinstance(golden, msgspec.UnsetType) and golden not in manifest.files:
        yield f"the golden vectors {golden[:80]!r} are none of its files"
    known = manifest.calibration
    if not isinstance(known, msgspec.UnsetType) and not (
        0 < known.answers < 2**53 and 0 < known.machines < 2**31
    ):
        yield "a calibration counts at least one answer of one machine"


def _embedding_faults(manifest: EmbeddingManifest) -> Iterator[str]:
    if not (0 < manifest.dimension < 2**20 and 0 < manifest.max_tokens < 2**31):
        yield "dimension and max_tokens must be positive"
    if not 0 < manifest.tau_e12 <= MAX_THRESHOLD_E12:
        yield f"tau_e12 is not between 1 and {MAX_THRESHOLD_E12}"


def _text_faults(manifest: TextManifest) -> Iterator[str]:
    for name in (GRAPH_FILE, TOKENIZER_FILE):
        if name not in manifest.files:
            yield f"its files have no {name}"
    if not 0 < manifest.context_tokens < 2**31:
        yield "context_tokens must be positive"
    if not 0 < manifest.vocab_tokens <= MAX_VOCAB_TOKENS:
        yield f"vocab_tokens is not between 1 and {MAX_VOCAB_TOKENS}"
    stops = manifest.stop_tokens
    if list(stops) != sorted(set(stops)) or len(stops) > MAX_STOP_TOKENS:
        yield f"stop_tokens must ascend, at most {MAX_STOP_TOKENS}"
    for token in (*stops, *(() if manifest.bos_token is None else (manifest.bos_token,))):
        if not 0 <= token < manifest.vocab_tokens:
            yield f"{token} is no token of the vocabulary"
    if _ENGINE.fullmatch(manifest.engine) is None or _VERSIONS.fullmatch(manifest.engine_versions) is None:
        yield "engine and engine_versions must be a word in lower case and a range such as >=1.20,<2"
    yield from _quantization_faults(manifest.quantization)
    if not all(0 < value <= MAX_THRESHOLD_E12 for value in msgspec.structs.astuple(manifest.thresholds)):
        yield f"a threshold is not between 1 and {MAX_THRESHOLD_E12}"
