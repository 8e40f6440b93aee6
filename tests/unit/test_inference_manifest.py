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
    make_engine_manifest,
    model_hash,
)
from emcd.inference.minilm import MINILM_MANIFEST
from emcd.proto.openai_shape import BASIC_ENDPOINTS, Endpoint


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


TOLD = EngineManifest(name="llama", quantization="awq-int4", context_tokens=131_072)


@pytest.mark.parametrize("manifest", [MINILM_MANIFEST, EngineManifest(name="llama"), TOLD])
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
        b'{"endpoints":[],"kind":"engine","name":"m"}',
        b'{"endpoints":null,"kind":"engine","name":"m"}',
        b'{"endpoints":["speech","chat"],"kind":"engine","name":"m"}',
        b'{"endpoints":["chat","chat"],"kind":"engine","name":"m"}',
        b'{"endpoints":["chat",1],"kind":"engine","name":"m"}',
        b'{"kind":"engine","name":"m","quantization":""}',
        b'{"kind":"engine","name":"m","quantization":"FP16"}',
        b'{"kind":"engine","name":"m","quantization":"fp 16"}',
        b'{"kind":"engine","name":"m","quantization":"' + b"q" * 33 + b'"}',
        b'{"context_tokens":0,"kind":"engine","name":"m"}',
        b'{"context_tokens":-1,"kind":"engine","name":"m"}',
        b'{"context_tokens":2147483648,"kind":"engine","name":"m"}',
    ],
)
def test_decode_manifest_bad_bytes_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_manifest(data)
    assert caught.value.code == "EMC-1610"


def test_engine_manifest_that_says_no_endpoints_has_the_hash_it_always_had() -> None:
    basic = make_engine_manifest("m", BASIC_ENDPOINTS)
    assert canonical_json(basic) == b'{"kind":"engine","name":"m"}'
    assert basic.list_endpoints() == BASIC_ENDPOINTS
    assert Endpoint.RESPONSES not in BASIC_ENDPOINTS


def test_engine_manifest_names_its_endpoints_in_one_way() -> None:
    made = make_engine_manifest("m", [Endpoint.SPEECH, Endpoint.CHAT])
    assert canonical_json(made) == b'{"endpoints":["chat","speech"],"kind":"engine","name":"m"}'
    read = decode_manifest(canonical_json(made))
    assert isinstance(read, EngineManifest)
    assert read.list_endpoints() == {Endpoint.CHAT, Endpoint.SPEECH}


def test_endpoint_of_a_later_version_is_passed_over() -> None:
    read = decode_manifest(b'{"endpoints":["chat","video"],"kind":"engine","name":"m"}')
    assert isinstance(read, EngineManifest)
    assert read.list_endpoints() == {Endpoint.CHAT}
