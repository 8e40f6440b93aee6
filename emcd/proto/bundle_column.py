"""Columns of numbers and of fixed-size bytes, each with one possible encoding.

A column of numbers is the smallest of them as u64, the width in bytes of the largest difference to
it, and the differences in that width, big-endian; a column of equal numbers has width 0, an empty one
smallest 0 and width 0. A column of bytes is its rows, one after the other. A difference of two
numbers is taken modulo 2**64 and folded, so that small ones of either sign are small numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from emcd.errors import RemoteProtocolError

U64 = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.uint8]
"""shape [n, bytes of a row]"""

_CODE = "EMC-1902"
_HEAD_BYTES = 9
_MAX = (1 << 64) - 1


def pack_numbers(values: U64) -> bytes:
    """The only encoding of these numbers."""
    if not len(values):
        return bytes(_HEAD_BYTES)
    base = int(values.min())
    offsets = values - np.uint64(base)
    width = _width_of(int(offsets.max()))
    return base.to_bytes(8, "big") + bytes([width]) + number_rows(offsets)[:, 8 - width :].tobytes()


def number_rows(values: U64) -> Rows:
    """Every number as 8 bytes, big-endian."""
    return values.astype(">u8").view(np.uint8).reshape(len(values), 8)


def fold_difference(values: U64, base: U64) -> U64:
    """values - base modulo 2**64, the sign moved to the lowest bit."""
    wrapped = (values - base).view(np.int64)
    return ((wrapped << np.int64(1)) ^ (wrapped >> np.int64(63))).view(np.uint64)


def unfold_difference(folded: U64, base: U64) -> U64:
    """The inverse of `fold_difference`."""
    sign = np.uint64(0) - (folded & np.uint64(1))
    return base + ((folded >> np.uint64(1)) ^ sign)


class ColumnReader:
    """Takes the columns of a frame in order; every departure from the one encoding is EMC-1902."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def numbers(self, name: str, count: int, bits: int = 64) -> U64:
        """Raises: RemoteProtocolError EMC-1902."""
        head = self._take(name, _HEAD_BYTES)
        base, width = int.from_bytes(head[:8], "big"), head[8]
        if width > 8 or (not count and any(head)):
            raise RemoteProtocolError(_CODE, f"{name}: no column has width {width}")
        raw = np.frombuffer(self._take(name, count * width), np.uint8)
        wide = np.zeros((count, 8), np.uint8)
        wide[:, 8 - width :] = raw.reshape(count, width)
        offsets: U64 = wide.view(">u8").astype(np.uint64).reshape(count)
        if not count:
            return offsets
        largest = int(offsets.max())
        if int(offsets.min()) or _width_of(largest) != width:
            raise RemoteProtocolError(_CODE, f"{name}: not the narrowest column of its numbers")
        if base + largest > _MAX or (base + largest) >> bits:
            raise RemoteProtocolError(_CODE, f"{name}: {base + largest} is no number of {bits} bits")
        return offsets + np.uint64(base)

    def rows(self, name: str, count: int, size: int) -> Rows:
        """Raises: RemoteProtocolError EMC-1902."""
        return np.frombuffer(self._take(name, count * size), np.uint8).reshape(count, size)

    def require_end(self) -> None:
        """Raises: RemoteProtocolError EMC-1902 when bytes are left."""
        if self._at != len(self._content):
            raise RemoteProtocolError(_CODE, f"{len(self._content) - self._at} bytes behind its columns")

    def _take(self, name: str, size: int) -> bytes:
        part = self._content[self._at : self._at + size]
        if len(part) != size:
            raise RemoteProtocolError(_CODE, f"{name}: the column is cut")
        self._at += size
        return part


def join_rows(items: Any, size: int) -> Rows:
    """Equal-sized byte strings as rows. Raises: ValueError when one has another size."""
    if set(map(len, items)) - {size}:
        raise ValueError(f"{size} bytes are wanted")
    return np.frombuffer(b"".join(items), np.uint8).reshape(-1, size)


def rows_of(items: Sequence[bytes], size: int) -> Rows:
    """Byte strings of one size as rows; none give an empty matrix. Raises: ValueError."""
    return join_rows(items, size) if items else np.zeros((0, size), np.uint8)


def as_strings(rows: Rows) -> npt.NDArray[np.bytes_]:
    """Rows as byte strings of numpy, which compare like bytes of that length."""
    size = rows.shape[1]
    strings: npt.NDArray[np.bytes_] = np.ascontiguousarray(rows).view(f"S{size}").reshape(len(rows))
    return strings


def _width_of(value: int) -> int:
    return (value.bit_length() + 7) // 8
