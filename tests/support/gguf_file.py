"""A Llama-like decoder as a GGUF file in fp32, for llama.cpp: the same tensors as in our ONNX graph.

Source: ggml's docs/gguf.md (version 3); llama.cpp's convert_hf_to_gguf.py for names and the order of
rotated dimensions (llama.cpp turns neighbours, Hugging Face's Llama turns halves).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emcd.inference.decoder_graph import EMBEDDING, FINAL_NORM, DecoderShape, layer_name
from emcd.inference.weights import Tensors

_ALIGNMENT = 32
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_NORMAL, _CONTROL = 1, 3


def write_gguf(
    target: Path, tensors: Tensors, shape: DecoderShape, tokenizer: Path, *, chat_template: str, eos: int
) -> None:
    """Write the file; the tokenizer is a byte-level BPE whose first tokens are special."""
    facts = json.loads(tokenizer.read_bytes())
    special = {item["id"] for item in facts["added_tokens"]}
    names = sorted(facts["model"]["vocab"], key=facts["model"]["vocab"].__getitem__)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in facts["model"]["merges"]]
    values = [
        _value("general.architecture", _STRING, "llama"),
        _value("general.name", _STRING, "tiny"),
        _value("general.file_type", _U32, 0),
        _value("llama.block_count", _U32, shape.layers),
        _value("llama.context_length", _U32, shape.context),
        _value("llama.embedding_length", _U32, shape.hidden),
        _value("llama.feed_forward_length", _U32, shape.ffn),
        _value("llama.attention.head_count", _U32, shape.heads),
        _value("llama.attention.head_count_kv", _U32, shape.kv_heads),
        _value("llama.attention.layer_norm_rms_epsilon", _F32, shape.epsilon),
        _value("llama.rope.freq_base", _F32, shape.rope_theta),
        _value("llama.rope.dimension_count", _U32, shape.head_dim),
        _value("llama.vocab_size", _U32, shape.vocab),
        _value("tokenizer.ggml.model", _STRING, "gpt2"),
        _value("tokenizer.ggml.pre", _STRING, "gpt-2"),
        _array("tokenizer.ggml.tokens", _STRING, names),
        _array(
            "tokenizer.ggml.token_type",
            _I32,
            [_CONTROL if token in special else _NORMAL for token in range(len(names))],
        ),
        _array("tokenizer.ggml.merges", _STRING, merges),
        _value("tokenizer.ggml.eos_token_id", _U32, eos),
        _value("tokenizer.ggml.add_bos_token", _BOOL, False),
        _value("tokenizer.chat_template", _STRING, chat_template),
    ]
    matrices = _rename(tensors, shape)
    head = [b"GGUF", struct.pack("<IQQ", 3, len(matrices), len(values)), *values]
    start = 0
    for name, matrix in matrices.items():
        head.append(_text(name) + struct.pack("<I", matrix.ndim))
        head.append(struct.pack(f"<{matrix.ndim}Q", *reversed(matrix.shape)))
        head.append(struct.pack("<IQ", 0, start))
        start += _padded(matrix.nbytes)
    with target.open("wb") as file:
        file.write(b"".join(head))
        file.write(b"\0" * (_padded(file.tell()) - file.tell()))
        for matrix in matrices.values():
            data = np.ascontiguousarray(matrix, "<f4").tobytes()
            file.write(data.ljust(_padded(len(data)), b"\0"))


def _rename(tensors: Tensors, shape: DecoderShape) -> dict[str, NDArray[Any]]:
    renamed = {"token_embd.weight": tensors[EMBEDDING], "output_norm.weight": tensors[FINAL_NORM]}
    parts = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    for index in range(shape.layers):
        for short, long in parts.items():
            matrix = tensors[f"{layer_name(index)}.{long}.weight"]
            if short in ("attn_q", "attn_k"):
                matrix = _as_neighbours(matrix, shape.head_dim)
            renamed[f"blk.{index}.{short}.weight"] = matrix
    return renamed


def _as_neighbours(matrix: NDArray[Any], width: int) -> NDArray[Any]:
    """Rows j and j + width / 2 of a head become rows 2j and 2j + 1."""
    rows, columns = matrix.shape
    return matrix.reshape(-1, 2, width // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _plain(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _text(value)
    return struct.pack({_U32: "<I", _I32: "<i", _F32: "<f", _BOOL: "<?"}[kind], value)


def _value(key: str, kind: int, value: Any) -> bytes:
    return _text(key) + struct.pack("<I", kind) + _plain(kind, value)


def _array(key: str, kind: int, items: list[Any]) -> bytes:
    head = _text(key) + struct.pack("<IIQ", _ARRAY, kind, len(items))
    return head + b"".join(_plain(kind, item) for item in items)
