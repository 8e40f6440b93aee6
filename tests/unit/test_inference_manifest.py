"""Manifests: one byte form, one hash, strict reading."""

from __future__ import annotations

import msgspec
import pytest

from emcd.errors import RemoteProtocolError
from emcd.inference.manifest import (
    MAX_MANIFEST_BYTES,
    EmbeddingManifest,
    EngineManifest,
    canonical_json,
    decode_manifest,
    model_hash,
)
from emcd.inference.minilm import MINILM_MANIFEST


def test_model_hash_minilm_never_changes() -> None:
    # Users' receipts name this hash: another value is another model.
    assert (
        model_hash(MINILM_MANIFEST).hex()
        == "7a902d1c92c7189ddcb6cbd86c8be08922f8019f51881219c3232f6b253f2b04"
    )


def test_canonical_json_is_sorted_and_dense() -> None:
    data = canonical_json(MINILM_MANIFEST)
    table = msgspec.json.decode(data)
    assert table["kind"] == "embedding"
    assert list(table) == sorted(table)
    assert b" " not in data
    assert canonical_json(EngineManifest(name="m")) == b'{"kind":"engine","name":"m"}'


@pytest.mark.parametrize("manifest", [MINILM_MANIFEST, EngineManifest(name="llama")])
def test_decode_manifest_round_trips(manifest: EmbeddingManifest | EngineManifest) -> None:
    assert decode_manifest(canonical_json(manifest)) == manifest


def test_model_hash_differs_with_every_field() -> None:
    other = {"name": "x", "graph": "x", "dimension": 1, "max_tokens": 128, "files": {}, "normalise": False}
    hashes = {
        model_hash(msgspec.structs.replace(MINILM_MANIFEST, **{field: value}))
        for field, value in other.items()
    }
    assert len(hashes | {model_hash(MINILM_MANIFEST)}) == len(other) + 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"kind":"engine"}',
        b'{"kind":"other","name":"m"}',
        b'{"kind":"engine","name":"m","extra":1}',
        b'{"name":"m","kind":"engine"}',
        b'{"kind":"engine", "name":"m"}',
        b'{"kind":"engine","name":"m"}\n',
        b'{"kind":"engine","kind":"engine","name":"m"}',
        b"[" * 10_000,
        b'{"kind":"engine","name":"' + b"m" * MAX_MANIFEST_BYTES + b'"}',
        b'{"kind":"engine","name":"' + b"m" * 257 + b'"}',
    ],
)
def test_decode_manifest_bad_bytes_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_manifest(data)
    assert caught.value.code == "EMC-1610"
