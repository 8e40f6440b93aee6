"""What each engine is sent: neutral values for what was left open, nothing that it refuses, nothing changed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emcd.inference.engine_kind import LLAMA_CPP, OLLAMA, SGLANG, TGI, TRANSFORMERS, VLLM
from emcd.inference.engine_request import list_ollama_faults, shape_request
from emcd.proto.openai_shape import Endpoint

ENGINES = (VLLM, SGLANG, LLAMA_CPP, OLLAMA, TGI, TRANSFORMERS, "")
EVIDENCE = {"logprobs": True, "top_logprobs": 5, "return_token_ids": True, "seed": 2**62 + 5}
ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


def shape(engine: str, endpoint: Endpoint = Endpoint.CHAT, **fields: Any) -> dict[str, Any]:
    table = json.loads(shape_request(engine, endpoint, json.dumps(ASKED | fields).encode()))
    assert isinstance(table, dict)
    return table


@pytest.mark.parametrize("body", [b"", b"[1]", b'{"a":', b"\xff", b"[" * 5000, b'"text"'])
def test_shape_request_of_what_is_no_object_passes_it_unchanged(body: bytes) -> None:
    assert shape_request(VLLM, Endpoint.CHAT, body) == body


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("endpoint", [Endpoint.EMBEDDINGS, Endpoint.RESPONSES, Endpoint.IMAGES])
def test_shape_request_of_other_endpoints_passes_it_unchanged(engine: str, endpoint: Endpoint) -> None:
    body = json.dumps(ASKED | EVIDENCE).encode()
    assert shape_request(engine, endpoint, body) == body


@pytest.mark.parametrize("engine", ENGINES)
def test_shape_request_keeps_every_value_that_the_caller_gave(engine: str) -> None:
    given = {"temperature": 0.3, "top_p": 0.8, "stop": ["x"], "seed": 7, "frequency_penalty": 0.5}
    assert shape(engine, **given).items() >= (ASKED | given).items()


@pytest.mark.parametrize(
    ("engine", "neutral"),
    [
        (VLLM, {"temperature": 1, "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1}),
        (SGLANG, {"temperature": 1, "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1}),
        (LLAMA_CPP, {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "typical_p": 1, "repeat_penalty": 1,
                     "dry_multiplier": 0, "xtc_probability": 0, "mirostat": 0, "dynatemp_range": 0,
                     "top_n_sigma": -1}),
        (OLLAMA, {"temperature": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}),
        (TGI, {"temperature": 1}),
        (TRANSFORMERS, {"temperature": 1, "top_p": 1}),
    ],
)  # fmt: skip
def test_shape_request_states_neutral_values_for_what_was_left_open(
    engine: str, neutral: dict[str, Any]
) -> None:
    assert shape(engine).items() >= neutral.items()
    assert shape(engine, temperature=None, top_p=None).items() >= neutral.items()
    given = dict.fromkeys(neutral, 0.25)
    if engine != TRANSFORMERS:
        assert shape(engine, **given).items() >= given.items()


def test_shape_request_of_an_unknown_engine_adds_nothing() -> None:
    kept = {name: value for name, value in EVIDENCE.items() if name != "return_token_ids"}
    assert shape("", **EVIDENCE) == ASKED | kept
    body = json.dumps(ASKED).encode()
    assert shape_request("", Endpoint.CHAT, body) is body


@pytest.mark.parametrize("engine", [SGLANG, LLAMA_CPP, OLLAMA, TGI])
def test_shape_request_leaves_out_token_ids_where_the_engine_has_no_such_word(engine: str) -> None:
    shaped = shape(engine, **EVIDENCE)
    assert "return_token_ids" not in shaped
    assert shaped["logprobs"] is True
    assert shaped["top_logprobs"] == 5


def test_shape_request_asks_vllm_for_token_ids_with_the_seed_as_it_is() -> None:
    assert shape(VLLM, **EVIDENCE).items() >= EVIDENCE.items()


def test_shape_request_leaves_out_what_transformers_refuses() -> None:
    shaped = shape(TRANSFORMERS, **EVIDENCE, stream=True, stream_options={"include_usage": True})
    assert not {"return_token_ids", "logprobs", "top_logprobs", "stream_options"} & set(shaped)
    assert shaped["stream"] is True


@pytest.mark.parametrize(("engine", "bits"), [(LLAMA_CPP, 31), (OLLAMA, 31), (SGLANG, 31), (TGI, 63)])
@pytest.mark.parametrize("seed", [-1, 2**62 + 5, 2**63 - 1, -(2**63)])
def test_shape_request_fits_the_seed_always_to_the_same(engine: str, bits: int, seed: int) -> None:
    fitted = shape(engine, seed=seed)["seed"]
    assert 0 <= fitted < 2**bits
    assert fitted == shape(engine, seed=seed)["seed"]
    assert fitted != shape(engine, seed=seed - 1 if seed > 0 else seed + 1)["seed"]


def test_shape_request_for_tgi_leaves_out_a_top_p_of_one_and_bounds_logprobs() -> None:
    shaped = shape(TGI, top_p=1.0, top_logprobs=20)
    assert "top_p" not in shaped
    assert shaped["top_logprobs"] == 5
    assert shape(TGI, top_p=0.9)["top_p"] == 0.9


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ("", ["repeat_penalty", "top_k"]),
        ("repeat_penalty 1\ntop_k 0", []),
        ("stop                \"<|im_end|>\"\nrepeat_penalty    1.0\ntop_k    0\nmin_p 0.05", ["min_p"]),
        ("top_k 40\nrepeat_penalty 1", ["top_k"]),
        ("top_k many", ["top_k"]),
    ],
)  # fmt: skip
def test_list_ollama_faults_names_what_the_model_sets(parameters: str, named: list[str]) -> None:
    faults = list_ollama_faults(parameters)
    assert [fault.split()[0] for fault in faults] == named
