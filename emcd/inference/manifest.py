"""What a model is, exactly: the manifest whose hash users buy and validators recompute.

Owns the manifest's fields and its canonical bytes. It must not import onnxruntime: the hub reads
manifests without having a model. Invariants: one manifest has one byte form (sorted keys, no
spaces); `model_hash` is keccak of those bytes, so node, hub and validator agree on it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.proto.hashing import keccak
from emcd.types import Hash

MAX_MANIFEST_BYTES = 16_384
MAX_NAME_CHARS = 256


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
    """A model behind an external engine: only its name is promised, nothing can be recomputed."""

    name: str


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
    if canonical_json(manifest) != data:
        raise RemoteProtocolError("EMC-1610", f"{manifest.name[:80]}: not in canonical form")
    return manifest
