"""A validator's plan of a round: what it commits to before, and what its reveal hashes.

Source: DESIGN 2.6, VERIFICATION 5.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from emcd.proto.bundle import ProbeResult
from emcd.proto.hashing import keccak
from emcd.types import Hash

_encoder = msgspec.msgpack.Encoder()


def compute_commitment(seed: bytes, corpus_root: bytes, salt: bytes) -> Hash:
    """keccak(seed || corpus_root || salt). Raises: ValueError when one of them is not 32 bytes."""
    if not len(seed) == len(corpus_root) == len(salt) == 32:
        raise ValueError("seed, corpus root and salt are 32 bytes each")
    return keccak(seed + corpus_root + salt)


def compute_probes_hash(probes: Sequence[ProbeResult]) -> Hash:
    """keccak of the msgpack array of the results, which are sorted by node and slot."""
    return keccak(_encoder.encode(tuple(probes)))
