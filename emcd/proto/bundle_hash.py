"""Struct hashes of many records at once: their EIP-712 encodings as rows of one matrix.

`TypedStruct.struct_hash` of `records.py` is the rule; here only the layout is done for thousands of
records together. Source: EIP-712, encodeData.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import sha3

from emcd.proto.bundle_column import U64, Rows, number_rows
from emcd.proto.eip712 import TypedStruct
from emcd.proto.hashing import keccak
from emcd.proto.records import Delivery, Forward, Receipt

_WORD = 32


def keccak_rows(rows: Rows) -> Rows:
    """keccak of every row. Returns uint8 [n, 32]."""
    count, size = rows.shape
    data, hash_of = rows.tobytes(), sha3.keccak_256
    digests = [hash_of(data[at : at + size]).digest() for at in range(0, count * size, size)]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(count, 32)


def hash_forwards(
    call_id: Rows,
    hub: bytes,
    router: Rows,
    node: Rows,
    request: Rows,
    model: Rows,
    version: U64,
    started: U64,
) -> Rows:
    """Struct hashes of `Forward`; addresses are rows of 20 bytes, `hub` one address."""
    every_hub = np.broadcast_to(np.frombuffer(hub, np.uint8), (len(call_id), 20))
    return _hash(Forward, [_left(call_id), every_hub, router, node, request, model, version, started])


def hash_receipts(
    forward_hash: Rows,
    response: Rows,
    http_status: U64,
    input_tokens: U64,
    output_tokens: U64,
    started: U64,
    finished: U64,
) -> Rows:
    """Struct hashes of `Receipt`."""
    return _hash(
        Receipt, [forward_hash, response, http_status, input_tokens, output_tokens, started, finished]
    )


def hash_deliveries(
    forward_hash: Rows,
    receipt_hash: Rows,
    body: Rows,
    status: U64,
    credits_micro: U64,
    vault_micro: U64,
    rounds: U64,
    finished: U64,
) -> Rows:
    """Struct hashes of `Delivery`."""
    return _hash(
        Delivery, [forward_hash, receipt_hash, body, status, credits_micro, vault_micro, rounds, finished]
    )


def _left(rows: Rows) -> Rows:
    """Short byte strings stand left in their word."""
    wide = np.zeros((len(rows), _WORD), np.uint8)
    wide[:, : rows.shape[1]] = rows
    return wide


def _hash(kind: type[TypedStruct], fields: Sequence[Rows | U64]) -> Rows:
    matrix = np.zeros((len(fields[0]), _WORD * (len(fields) + 1)), np.uint8)
    matrix[:, :_WORD] = np.frombuffer(keccak(kind.type_string().encode()), np.uint8)
    for position, field in enumerate(fields, 1):
        rows = number_rows(field) if field.ndim == 1 else field  # type: ignore[arg-type]
        end = _WORD * (position + 1)
        matrix[:, end - rows.shape[1] : end] = rows
    return keccak_rows(matrix)
