"""Judging a node's heartbeat: who signed it, for whom, when, and what models it really names. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from emcd.errors import RemoteProtocolError
from emcd.inference.manifest import CheckedManifest, EmbeddingManifest, TextManifest, decode_manifest
from emcd.proto.address import hex_hash
from emcd.proto.control import StatusMessage
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.messages import NodeStatus
from emcd.proto.openai import Endpoint
from emcd.proto.params import MAX_CLOCK_SKEW_MS
from emcd.proto.signing import require_signer
from emcd.types import Address

MAX_MODELS = 64
MAX_CAPACITY = 4096
MAX_TEXT = 200
_MAX_NUMBER = 2**63 - 1


@dataclass(frozen=True)
class ModelInfo:
    """A manifest as the hub uses it.

    `max_input_tokens` is per text, `context_tokens` of prompt and answer together; None and "" where the
    manifest does not say. `checked`: the manifest, where anybody can recompute what it promises.
    """

    model_hash: bytes
    name: str
    endpoints: frozenset[Endpoint]
    max_input_tokens: int | None
    quantization: str = ""
    context_tokens: int | None = None
    checked: CheckedManifest | None = None


def read_manifest(data: bytes) -> ModelInfo:
    """What a manifest's canonical JSON says. Raises: RemoteProtocolError EMC-1610."""
    manifest = decode_manifest(data)
    model_hash, endpoints = keccak(data), manifest.list_endpoints()
    if isinstance(manifest, EmbeddingManifest):
        cut_at, numbers = manifest.max_tokens, manifest.numeric_class
        return ModelInfo(model_hash, manifest.name, endpoints, cut_at, numbers, cut_at, manifest)
    kind, longest = manifest.quantization or "", manifest.context_tokens or None
    if isinstance(manifest, TextManifest):
        return ModelInfo(model_hash, manifest.name, endpoints, longest, kind, longest, manifest)
    return ModelInfo(model_hash, manifest.name, endpoints, None, kind, longest)


def require_status(
    message: StatusMessage, *, domain: Domain, hub: Address, node: Address, now_ms: int, last_sequence: int
) -> NodeStatus:
    """Check a heartbeat against the connection it came on.

    Raises: RemoteProtocolError EMC-1494, EMC-1495 (signature), EMC-1720 (somebody else's), EMC-1721
        (sequence), EMC-1722 (clock), EMC-1723 (content).
    """
    status = message.status
    if status.node != node or status.hub != hub:
        raise RemoteProtocolError("EMC-1720", f"status of {status.node} for {status.hub}")
    _require_bounds(status)
    require_signer(domain, status, message.signature, node)
    if status.sequence <= last_sequence:
        raise RemoteProtocolError("EMC-1721", f"sequence {status.sequence} after {last_sequence}")
    if abs(status.sent_at_ms - now_ms) > MAX_CLOCK_SKEW_MS:
        raise RemoteProtocolError(
            "EMC-1722", f"the status is {status.sent_at_ms - now_ms} ms off the hub's clock"
        )
    return status


def _require_bounds(status: NodeStatus) -> None:
    """Checked before the signature, whose hash exists only for values within their types."""
    if len(status.models) > MAX_MODELS or list(status.models) != sorted(set(status.models)):
        raise RemoteProtocolError("EMC-1723", f"models must be at most {MAX_MODELS}, sorted, each once")
    if any(len(item) != 32 for item in status.models):
        raise RemoteProtocolError("EMC-1723", "a model's hash is not 32 bytes")
    if (
        not 0 <= status.capacity <= MAX_CAPACITY
        or len(status.version) > MAX_TEXT
        or len(status.gpu) > MAX_TEXT
    ):
        raise RemoteProtocolError("EMC-1723", "capacity, version or gpu is too large")
    if not 0 <= status.in_flight < 2**32 or not all(
        0 <= number <= _MAX_NUMBER for number in (status.sequence, status.sent_at_ms)
    ):
        raise RemoteProtocolError("EMC-1723", "a number is negative or too large")


def require_models(message: StatusMessage, known: Mapping[bytes, ModelInfo]) -> dict[bytes, ModelInfo]:
    """The models of a heartbeat; a manifest that was given before need not be given again.

    Raises: RemoteProtocolError EMC-1724 (a hash without its manifest), EMC-1610 (no manifest).
    """
    given: dict[bytes, bytes] = {}
    for data in message.manifests[: MAX_MODELS + 1]:
        given[keccak(data)] = data
    if extra := given.keys() - set(message.status.models):
        raise RemoteProtocolError(
            "EMC-1724", f"manifest {hex_hash(min(extra))} is not among the status's models"
        )
    models = {}
    for model_hash in message.status.models:
        info = known.get(model_hash)
        if info is None:
            if model_hash not in given:
                raise RemoteProtocolError("EMC-1724", f"the manifest of {hex_hash(model_hash)} is missing")
            info = read_manifest(given[model_hash])
        models[model_hash] = info
    return models
