"""The gas limit for an estimate that may be anything."""

from __future__ import annotations

import pytest

from emcd.chain.gas import MOST_GAS, bound_gas, intrinsic_gas

DATA = b"\x00\x01" * 100


def test_intrinsic_gas_counts_zero_bytes_less() -> None:
    assert intrinsic_gas(b"") == 21_000
    assert intrinsic_gas(DATA) == 21_000 + 100 * 4 + 100 * 16


@pytest.mark.parametrize(
    ("estimate", "block_gas", "gas"),
    [
        (100_000, 30_000_000, 125_000),
        (0, 30_000_000, 28_750),
        (21_000, 30_000_000, 28_750),
        (25_000_000, 9_000_000, 9_000_000),
        (2**255, 60_000_000, MOST_GAS),
        (100_000, 1, 28_750),
    ],
)
def test_bound_gas_is_never_one_that_nodes_refuse_unseen(estimate: int, block_gas: int, gas: int) -> None:
    assert bound_gas(estimate, DATA, block_gas) == gas
