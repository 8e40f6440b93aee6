"""Whose calls those of an archived bundle were: one number a call, in the order of the bundle.

Layout: magic, length of the table u32, the table (msgpack array of account ids), then for every call
of the bundle the index of its account u32 (all ones: not known), crc32 of all before it. It is kept
as long as the operator says, and then the calls are nobody's.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import msgspec

from emcd.errors import RecoverableError

MAGIC = b"EMCDOWN1"
UNKNOWN = 0xFFFFFFFF
_WORD = 4
_table = msgspec.msgpack.Decoder(list[str]).decode


def write_owners(out: BinaryIO, owners: Iterable[str | None]) -> None:
    """Write the owners of a bundle's calls, in the bundle's order."""
    table: dict[str, int] = {}
    rows = bytearray()
    for owner in owners:
        number = UNKNOWN if owner is None else table.setdefault(owner, len(table))
        rows += number.to_bytes(_WORD, "big")
    packed = msgspec.msgpack.encode(list(table))
    head = MAGIC + len(packed).to_bytes(_WORD, "big") + packed
    out.write(head)
    out.write(rows)
    out.write(zlib.crc32(rows, zlib.crc32(head)).to_bytes(_WORD, "big"))


def read_owner(path: Path, position: int) -> str | None:
    """The account of the call at a position; None when it is not known.

    Raises: RecoverableError EMC-1756 when the file is damaged. OSError.
    """
    with path.open("rb") as file:
        head = file.read(len(MAGIC) + _WORD)
        size = int.from_bytes(head[len(MAGIC) :], "big")
        end = file.seek(0, os.SEEK_END)
        place = len(head) + size + _WORD * position
        if not head.startswith(MAGIC) or place + 2 * _WORD > end:
            raise RecoverableError("EMC-1756", str(path))
        file.seek(len(head))
        packed = file.read(size)
        file.seek(place)
        number = int.from_bytes(file.read(_WORD), "big")
    if number == UNKNOWN:
        return None
    try:
        return _table(packed)[number]
    except (msgspec.MsgspecError, IndexError) as exc:
        raise RecoverableError("EMC-1756", str(path)) from exc
