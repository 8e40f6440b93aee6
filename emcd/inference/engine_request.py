"""Requests as each engine needs them, so that what it computes is what was asked for and nothing else.

Pure: bytes in, bytes out. Engines have defaults of their own that move logits or choices (a repeat penalty,
top-k, min-p, a model's generation_config): every generation call states neutral values for all that its
caller left open. What an engine is known not to take is left out or put in its words, so that it does not
refuse the call. Invariants: no value that the caller gave is changed, but where an engine has another word
or size for the same; an engine that is not known gets the request as it came, less `return_token_ids`,
which strict servers refuse; what is no JSON object passes unchanged.

Source: the engines' documentation: vLLM (OpenAI-compatible server), SGLang (sampling parameters), llama.cpp
(tools/server/README), Ollama (OpenAI compatibility), TGI (OpenAPI), transformers (serving).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from emcd.inference.engine_kind import LLAMA_CPP, OLLAMA, SGLANG, TGI, TRANSFORMERS, VLLM
from emcd.proto.openai_evidence import TOKEN_IDS
from emcd.proto.openai_shape import Endpoint

GENERATION: Final = frozenset((Endpoint.CHAT, Endpoint.COMPLETIONS))

_OPENAI: Final = {"temperature": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
_HF_STYLE: Final = {**_OPENAI, "top_k": -1, "min_p": 0, "repetition_penalty": 1}
_NEUTRAL: Final[Mapping[str, Mapping[str, Any]]] = {
    VLLM: _HF_STYLE,
    SGLANG: _HF_STYLE,
    LLAMA_CPP: {
        **_OPENAI,
        "top_k": 0,
        "min_p": 0,
        "typical_p": 1,
        "top_n_sigma": -1,
        "repeat_penalty": 1,
        "dry_multiplier": 0,
        "xtc_probability": 0,
        "dynatemp_range": 0,
        "mirostat": 0,
    },
    # Through OpenAI's API Ollama takes no more; `list_ollama_faults` looks at what the model itself sets.
    OLLAMA: _OPENAI,
    # TGI takes a top_p below 1 only, and none means the same; its penalties are off unless asked for.
    TGI: {"temperature": 1},
    TRANSFORMERS: {"temperature": 1, "top_p": 1, "frequency_penalty": 0},
}
_UNKNOWN_WORDS: Final[Mapping[str, frozenset[str]]] = {
    SGLANG: frozenset((TOKEN_IDS,)),
    LLAMA_CPP: frozenset((TOKEN_IDS,)),
    OLLAMA: frozenset((TOKEN_IDS,)),
    TGI: frozenset((TOKEN_IDS,)),
    # It refuses words it does not know, and ignores these with a warning.
    TRANSFORMERS: frozenset(
        (TOKEN_IDS, "logprobs", "top_logprobs", "top_k", "min_p", "stream_options", "n", "presence_penalty")
    ),
    "": frozenset((TOKEN_IDS,)),
}
_SEED_BITS: Final = {LLAMA_CPP: 31, OLLAMA: 31, SGLANG: 31, TGI: 63, TRANSFORMERS: 63}
_TGI_LOGPROBS: Final = 5


def shape_request(engine: str, endpoint: Endpoint, body: bytes) -> bytes:
    """The body to send to an engine of this name ("": unknown)."""
    if endpoint not in GENERATION:
        return body
    table = _read_table(body)
    if table is None:
        return body
    shaped = {name: value for name, value in table.items() if name not in _UNKNOWN_WORDS.get(engine, ())}
    for name, value in _NEUTRAL.get(engine, {}).items():
        if shaped.get(name) is None:
            shaped[name] = value
    _fit_seed(engine, shaped)
    if engine == TGI:
        _fit_tgi(shaped)
    return body if shaped == table else msgspec.json.encode(shaped)


def _read_table(body: bytes) -> dict[str, Any] | None:
    try:
        table = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return table if isinstance(table, dict) else None


def _fit_seed(engine: str, table: dict[str, Any]) -> None:
    """A seed of the size that the engine takes: the same seed always gives the same one."""
    bits, seed = _SEED_BITS.get(engine), table.get("seed")
    if bits is not None and type(seed) is int and not 0 <= seed < 1 << bits:
        table["seed"] = seed % ((1 << bits) - 1)


def _fit_tgi(table: dict[str, Any]) -> None:
    if table.get("top_p") == 1:
        del table["top_p"]
    for name in ("top_logprobs", "logprobs"):
        asked = table.get(name)
        if type(asked) is int and asked > _TGI_LOGPROBS:
            table[name] = _TGI_LOGPROBS


_OLLAMA_NEUTRAL: Final = {"repeat_penalty": 1.0, "top_k": 0.0, "min_p": 0.0}
_OLLAMA_DEFAULTS: Final = {"repeat_penalty": 1.1, "top_k": 40.0, "min_p": 0.0}


def list_ollama_faults(parameters: str) -> list[str]:
    """What a model of Ollama does to its choices that no request can turn off.

    Args:
        parameters: of the model as `/api/show` tells them: a name and a value a line.
    """
    set_values = dict(_OLLAMA_DEFAULTS)
    for line in parameters.splitlines():
        name, _, value = line.strip().partition(" ")
        if name in set_values:
            try:
                set_values[name] = float(value.strip().strip('"'))
            except ValueError:
                return [f"{name} is {value.strip()[:20]}"]
    return [
        f"{name} is {set_values[name]:g}: say PARAMETER {name} {neutral:g} in its Modelfile"
        for name, neutral in _OLLAMA_NEUTRAL.items()
        if set_values[name] != neutral
    ]
