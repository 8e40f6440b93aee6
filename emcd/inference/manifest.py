"""What a model is, exactly: the manifest whose hash users buy and validators recompute.

Owns the manifest's fields and its canonical bytes. It must not import onnxruntime: the hub reads
manifests without having a model. Invariants: one manifest has one byte form (sorted keys, no
spaces); `model_hash` is keccak of those bytes, so node, hub and validator agree on it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.proto.hashing import keccak
from emcd.proto.openai_shape import BASIC_ENDPOINTS, ENDPOINT_WORDS, Endpoint
from emcd.types import Hash

MAX_MANIFEST_BYTES = 16_384
MAX_NAME_CHARS = 256
MAX_ENDPOINTS = 32
QUANTIZATION = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")


class EmbeddingManifest(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="embedding",
                        forbid_unknown_fields=True):  # fmt: skip
    """An embedding model that anyone can recompute.

    Args:
        files: sha256 (hex) by file name, of everything the vectors depend on.
        graph: name and version of the graph built from the weights.
        dimension: length of a vector.
        max_tokens: where a text is cut, special tokens included.
        numeric_class: the arithmetic a verdict's thresholds belong to.
    """

    name: str
    files: dict[str, str]
    graph: str
    dimension: int
    max_tokens: int
    truncation: Literal["right"] = "right"
    pooling: Literal["mean"] = "mean"
    normalise: bool = True
    numeric_class: Literal["fp32"] = "fp32"


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


Manifest = EmbeddingManifest | EngineManifest

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
    if len(manifest.name) > MAX_NAME_CHARS:
        raise RemoteProtocolError("EMC-1610", f"a name of {len(manifest.name)} characters")
    if isinstance(manifest, EngineManifest):
        _require_facts(manifest)
    if canonical_json(manifest) != data:
        raise RemoteProtocolError("EMC-1610", f"{manifest.name[:80]}: not in canonical form")
    return manifest


def _require_facts(manifest: EngineManifest) -> None:
    name, words, context = manifest.name[:80], manifest.endpoints, manifest.context_tokens
    if not isinstance(words, msgspec.UnsetType) and (
        not 0 < len(words) <= MAX_ENDPOINTS or list(words) != sorted(set(words))
    ):
        raise RemoteProtocolError("EMC-1610", f"{name}: endpoints must be sorted, each once")
    kind = manifest.quantization
    if not isinstance(kind, msgspec.UnsetType) and QUANTIZATION.fullmatch(kind) is None:
        raise RemoteProtocolError("EMC-1610", f"{name}: quantization must be a word in lower case")
    if not isinstance(context, msgspec.UnsetType) and not 0 < context < 2**31:
        raise RemoteProtocolError("EMC-1610", f"{name}: context_tokens must be positive")
