from __future__ import annotations

import numpy as np
import pytest

from emcd.errors import RemoteProtocolError
from emcd.proto.bundle_column import (
    ColumnReader,
    as_strings,
    fold_difference,
    join_rows,
    pack_numbers,
    rows_of,
    unfold_difference,
)

TOP = (1 << 64) - 1


def column(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def head(base: int, width: int) -> bytes:
    return base.to_bytes(8, "big") + bytes([width])


@pytest.mark.parametrize(
    ("values", "packed"),
    [
        ((), head(0, 0)),
        ((7,), head(7, 0)),
        ((7, 7, 7), head(7, 0)),
        ((5, 260), head(5, 1) + b"\x00\xff"),
        ((5, 261), head(5, 2) + b"\x00\x00\x01\x00"),
        ((TOP, 0), head(0, 8) + b"\xff" * 8 + bytes(8)),
        ((TOP, TOP - 1), head(TOP - 1, 1) + b"\x01\x00"),
    ],
)
def test_column_has_one_encoding(values: tuple[int, ...], packed: bytes) -> None:
    assert pack_numbers(column(*values)) == packed
    take = ColumnReader(packed)
    assert take.numbers("x", len(values)).tolist() == list(values)
    take.require_end()


@pytest.mark.parametrize(
    ("packed", "count", "bits"),
    [
        (head(1, 0), 0, 64),  # an empty column with a smallest number
        (head(0, 1), 0, 64),  # an empty column with a width
        (head(5, 1) + b"\x00\x00", 2, 64),  # equal numbers need no width
        (head(4, 1) + b"\x01\x02", 2, 64),  # the base is not the smallest
        (head(5, 2) + b"\x00\x00\x00\xff", 2, 64),  # one byte is enough
        (head(5, 9) + bytes(18), 2, 64),
        (head(TOP, 1) + b"\x00\x01", 2, 64),  # beyond 64 bits
        (head(255, 1) + b"\x00\x01", 2, 8),  # beyond the bits of the field
        (head(5, 1) + b"\x00", 2, 64),  # cut
        (head(5, 0)[:8], 1, 64),
    ],
)
def test_column_any_other_encoding_is_refused(packed: bytes, count: int, bits: int) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        ColumnReader(packed).numbers("x", count, bits)
    assert caught.value.code == "EMC-1902"


def test_column_bytes_left_are_refused() -> None:
    take = ColumnReader(bytes(33))
    assert take.rows("x", 1, 32).shape == (1, 32)
    with pytest.raises(RemoteProtocolError, match="1 bytes behind"):
        take.require_end()


@pytest.mark.parametrize(
    ("value", "base", "folded"),
    [(5, 5, 0), (6, 5, 2), (4, 5, 1), (0, TOP, 2), (TOP, 0, 1), (1 << 63, 0, TOP)],
)
def test_column_difference_folds_and_unfolds(value: int, base: int, folded: int) -> None:
    assert fold_difference(column(value), column(base)).tolist() == [folded]
    assert unfold_difference(column(folded), column(base)).tolist() == [value]


def test_column_rows_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        join_rows([bytes(31), bytes(33)], 32)
    assert rows_of([], 32).shape == (0, 32)


def test_column_strings_compare_like_bytes() -> None:
    items = sorted(
        [
            bytes(16),
            b"\x00" * 15 + b"\x01",
            b"\x80" + bytes(15),
            b"\xff" * 16,
            b"\x7f" + bytes(15),
            b"\x01" * 16,
        ]
    )
    strings = as_strings(join_rows(items, 16))
    assert (strings[1:] > strings[:-1]).all()
    assert np.searchsorted(strings, strings).tolist() == list(range(len(items)))
