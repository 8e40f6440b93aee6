"""Bundles at rest: the canonical bytes in blocks that are compressed one by one.

Layout: magic, the blocks, a table of (offset u64) of every block and of their end, then size of
the content u64, size of a block u32, number of blocks u32, crc of the table u32, magic. Invariants:
any part is read without the rest; what is read is what was packed, or an error; a file is whole
(it ends with the magic) or is no packed file.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import overload

from emcd.errors import RecoverableError

MAGIC = b"EMCDPAK1"
BLOCK_BYTES = 1 << 16
_LEVEL = 6
_TAIL = struct.Struct(">QIII8s")
_KEPT_BLOCKS = 128


def pack_file(source: Path, target: Path) -> None:
    """Write the packed form of a file, synced. Blocking, CPU-bound."""
    offsets = [len(MAGIC)]
    size = 0
    with source.open("rb") as plain, target.open("wb") as out:
        out.write(MAGIC)
        while block := plain.read(BLOCK_BYTES):
            size += len(block)
            packed = zlib.compress(block, _LEVEL)
            out.write(packed)
            offsets.append(offsets[-1] + len(packed))
        table = struct.pack(f">{len(offsets)}Q", *offsets)
        out.write(table)
        out.write(_TAIL.pack(size, BLOCK_BYTES, len(offsets) - 1, zlib.crc32(table), MAGIC))
        out.flush()
        os.fsync(out.fileno())


class PackedFile:
    """A packed file as a sequence of bytes: `len(file)`, `file[a:b]`. Keeps 8 MiB of blocks at most.

    Raises: RecoverableError EMC-1756 when the file is damaged.
    """

    _size: int
    _block_bytes: int

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        try:
            self._read_table()
        except (OSError, struct.error) as exc:
            self._file.close()
            raise self._damaged() from exc
        except BaseException:
            self._file.close()
            raise
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def _read_table(self) -> None:
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(end - _TAIL.size)
        self._size, self._block_bytes, count, crc, magic = _TAIL.unpack(self._file.read(_TAIL.size))
        table_bytes = 8 * (count + 1)
        if magic != MAGIC or table_bytes + _TAIL.size > end or not self._block_bytes:
            raise self._damaged()
        self._file.seek(end - _TAIL.size - table_bytes)
        table = self._file.read(table_bytes)
        if zlib.crc32(table) != crc or -(-self._size // self._block_bytes) != count:
            raise self._damaged()
        self._offsets = struct.unpack(f">{count + 1}Q", table)

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, key: int) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> bytes: ...
    def __getitem__(self, key: int | slice) -> int | bytes:
        if isinstance(key, int):
            index = key + self._size if key < 0 else key
            if not 0 <= index < self._size:
                raise IndexError(key)
            return self.read(index, 1)[0]
        start, stop, step = key.indices(self._size)
        part = self.read(start, max(0, stop - start))
        return part if step == 1 else part[::step]

    def read(self, start: int, size: int) -> bytes:
        """Bytes from `start` on, as far as there are any."""
        stop = min(start + size, self._size)
        parts = []
        while start < stop:
            number, skip = divmod(start, self._block_bytes)
            part = self._block(number)[skip : skip + stop - start]
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is not None:
            self._blocks.move_to_end(number)
            return block
        try:
            self._file.seek(self._offsets[number])
            block = zlib.decompress(self._file.read(self._offsets[number + 1] - self._offsets[number]))
        except (OSError, zlib.error) as exc:
            raise self._damaged() from exc
        if len(block) != min(self._block_bytes, self._size - number * self._block_bytes):
            raise self._damaged()
        self._blocks[number] = block
        if len(self._blocks) > _KEPT_BLOCKS:
            self._blocks.popitem(last=False)
        return block

    def _damaged(self) -> RecoverableError:
        return RecoverableError("EMC-1756", f"{self._path} is damaged")

    def close(self) -> None:
        self._file.close()
        self._blocks.clear()
