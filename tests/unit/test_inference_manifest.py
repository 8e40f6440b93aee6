"""Manifests: one byte form, one hash, strict reading."""

from __future__ import annotations

import msgspec
import pytest

from emcd.errors import RemoteProtocolError
from emcd.inference.manifest import (
    CLASS_THRESHOLDS,
    MAX_MANIFEST_BYTES,
    Calibration,
    EngineManifest,
    Manifest,
    TextManifest,
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
        == "c866d9271112d1f9185a8bd16ae2037c10ce8a46dd901aaf0307c56fb3a06f88"
    )


def test_canonical_json_is_sorted_and_dense() -> None:
    data = canonical_json(MINILM_MANIFEST)
    table = msgspec.json.decode(data)
    assert table["kind"] == "embedding"
    assert list(table) == sorted(table)
    assert b" " not in data
    assert canonical_json(EngineManifest(name="m")) == b'{"kind":"engine","name":"m"}'


TOLD = EngineManifest(name="llama", quantization="awq-int4", context_tokens=131_072)
TEXT = TextManifest(
    name="writer",
    files={
        name: f"{number:064x}" for number, name in enumerate(("golden.json", "model.onnx", "tokenizer.json"))
    },
    context_tokens=512,
    vocab_tokens=2048,
    bos_token=1,
    stop_tokens=(0, 2),
)
CHATTY = msgspec.structs.replace(
    TEXT,
    files={**TEXT.files, "chat_template.jinja": "ab" * 32},
    bos_token=None,
    engine="vllm",
    engine_versions=">=0.6,<0.8",
    sampler="engine",
    quantization="int8",
    calibration=Calibration(answers=2000, machines=3),
)


@pytest.mark.parametrize("manifest", [MINILM_MANIFEST, EngineManifest(name="llama"), TOLD, TEXT, CHATTY])
def test_decode_manifest_round_trips(manifest: Manifest) -> None:
    assert decode_manifest(canonical_json(manifest)) == manifest


def test_text_manifest_leaves_out_what_is_not_said_and_nothing_else() -> None:
    assert canonical_json(TEXT) == (
        b'{"bos_token":1,"context_tokens":512,"engine":"emcd-onnx","engine_versions":"","files":{'
        b'"golden.json":"' + b"0" * 64 + b'","model.onnx":"' + b"0" * 63 + b'1","tokenizer.json":"'
        + b"0" * 63 + b'2"},"golden":"golden.json","kind":"text","name":"writer","numeric_class":"fp32",'
        b'"sampler":"emcd-gumbel-v1","stop_tokens":[0,2],"thresholds":{"d_e12":200000000,"first_e12":200000000,'
        b'"m_e12":100000000,"w_e12":400000000},"truncation":"none","vocab_tokens":2048}'
    )  # fmt: skip


def test_text_manifest_is_asked_where_it_can_answer() -> None:
    assert TEXT.list_endpoints() == {Endpoint.COMPLETIONS}
    assert CHATTY.list_endpoints() == {Endpoint.COMPLETIONS, Endpoint.CHAT}
    assert MINILM_MANIFEST.list_endpoints() == {Endpoint.EMBEDDINGS}


@pytest.mark.parametrize(
    ("said", "about"),
    [
        ({"name": ""}, "a name of 0"),
        ({"files": {**TEXT.files, "../escape": "ab" * 32}}, "no file"),
        ({"files": {**TEXT.files, "manifest.json": "ab" * 32}}, "no file"),
        ({"files": {**TEXT.files, ".hidden": "ab" * 32}}, "no file"),
        ({"files": {**TEXT.files, "model.onnx": "AB" * 32}}, "no file"),
        ({"files": {**TEXT.files, "model.onnx": "ab"}}, "no file"),
        ({"files": {n: s for n, s in TEXT.files.items() if n != "model.onnx"}}, "no model.onnx"),
        ({"files": {n: s for n, s in TEXT.files.items() if n != "tokenizer.json"}}, "no tokenizer.json"),
        ({"files": {n: s for n, s in TEXT.files.items() if n != "golden.json"}}, "golden vectors"),
        ({"files": {**TEXT.files, **{f"f{n}": "ab" * 32 for n in range(62)}}}, "more than 64"),
        ({"context_tokens": 0}, "context_tokens"),
        ({"vocab_tokens": 0}, "vocab_tokens"),
        ({"vocab_tokens": 2**25}, "vocab_tokens"),
        ({"bos_token": 2048}, "no token"),
        ({"stop_tokens": (-1,)}, "no token"),
        ({"stop_tokens": (2, 0)}, "stop_tokens"),
        ({"stop_tokens": (0, 0)}, "stop_tokens"),
        ({"engine": "vLLM"}, "engine"),
        ({"engine": ""}, "engine"),
        ({"engine_versions": "new; old"}, "engine"),
        ({"quantization": "INT8"}, "quantization"),
        ({"thresholds": msgspec.structs.replace(CLASS_THRESHOLDS["fp32"], m_e12=0)}, "threshold"),
        ({"thresholds": msgspec.structs.replace(CLASS_THRESHOLDS["fp32"], d_e12=10**13 + 1)}, "threshold"),
        ({"calibration": Calibration(answers=0, machines=1)}, "calibration"),
        ({"calibration": Calibration(answers=1, machines=0)}, "calibration"),
    ],
)
def test_text_manifest_that_no_model_can_have_is_refused(said: dict[str, object], about: str) -> None:
    data = canonical_json(msgspec.structs.replace(TEXT, **said))
    with pytest.raises(RemoteProtocolError, match=about) as caught:
        decode_manifest(data)
    assert caught.value.code == "EMC-1610"


@pytest.mark.parametrize(
    "said",
    [{"dimension": 0}, {"max_tokens": 0}, {"tau_e12": 0}, {"tau_e12": 10**13 + 1}, {"golden": "other.json"}],
)
def test_embedding_manifest_that_no_model_can_have_is_refused(said: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1610"):
        decode_manifest(canonical_json(msgspec.structs.replace(MINILM_MANIFEST, **said)))


def test_model_hash_differs_with_every_field() -> None:
    other = {
        "name": "x",
        "graph": "x",
        "dimension": 1,
        "max_tokens": 128,
        "files": {},
        "normalise": False,
        "tau_e12": 1,
        "golden": msgspec.UNSET,
        "calibration": Calibration(answers=1, machines=1),
    }
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
