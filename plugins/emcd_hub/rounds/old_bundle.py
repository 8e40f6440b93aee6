"""Bundles of formats 1 and 2, which earlier releases wrote; format 1 stood in the ledger.

They are kept as they are, as files: their bytes, hashes and seals stay what they were, and rounds
build on them. What they hold is not audited any more; all that is read of them are the ids of their
calls, which a round that came to nothing gives to a later bundle.
"""

from __future__ import annotations

import zlib
from functools import partial

import msgspec
import trio

from emcd.ledger import Connection, Ledger, LedgerFile
from emcd.proto.bundle_frame import MAGIC
from emcd.proto.records import Forward
from emcd_hub.rounds.bundle_folder import BundleFolder, Content
from emcd_hub.rounds.bundle_row import list_old_data, move_old_data

_MAGIC_BYTES = 8
_FIRST_MAGIC = b"EMCDBDL1"
_FIRST_CALLS_SECTION, _SECOND_CALLS_SECTION = 5, 4
_GROUP_CALLS = 4096
_ID_BYTES = 16
_WORD = 4


class _OldCall(msgspec.Struct, frozen=True, array_like=True):
    forward: Forward


_decode = msgspec.msgpack.Decoder(_OldCall).decode


def is_old(data: Content) -> bool:
    return data[:_MAGIC_BYTES] != MAGIC


def list_old_call_ids(data: Content) -> bytes:
    """The call ids, joined, ascending. `data` is the hub's own file: its bytes are those it wrote."""
    return _list_first(data) if data[:_MAGIC_BYTES] == _FIRST_MAGIC else _list_second(data)


def _list_first(data: Content) -> bytes:
    place, ids = _MAGIC_BYTES, []
    for section in range(_FIRST_CALLS_SECTION + 1):
        count = int.from_bytes(data[place : place + _WORD], "big")
        place += _WORD
        for _ in range(count):
            size = int.from_bytes(data[place : place + _WORD], "big")
            place += 2 * _WORD  # the size and its checksum
            if section == _FIRST_CALLS_SECTION:
                ids.append(_decode(data[place : place + size]).forward.call_id)
            place += size
    return b"".join(ids)


def _list_second(data: Content) -> bytes:
    """A section begins with u32 count and u64 size; a frame of calls with the ids of its group."""
    place = _MAGIC_BYTES
    for _ in range(_SECOND_CALLS_SECTION):
        place += 3 * _WORD + int.from_bytes(data[place + _WORD : place + 3 * _WORD], "big")
    left, ids = int.from_bytes(data[place : place + _WORD], "big"), []
    place += 3 * _WORD
    while left > 0:
        size = int.from_bytes(data[place : place + _WORD], "big")
        place += 2 * _WORD
        ids.append(data[place : place + _ID_BYTES * min(left, _GROUP_CALLS)])
        place += size
        left -= _GROUP_CALLS
    return b"".join(ids)


async def move_old_bundles(ledger: Ledger, folder: BundleFolder) -> int:
    """Make files of the bundles that still stand in the ledger. Returns: how many there were."""
    old = await ledger.read(list_old_data, timeout_s=600)
    for index, bundle_hash, packed in old:
        data = await trio.to_thread.run_sync(zlib.decompress, packed)
        file = await trio.to_thread.run_sync(_write, folder, index, bundle_hash, data)
        await ledger.write(partial(_move, index=index, file=file, size_bytes=len(data)))
    return len(old)


def _write(folder: BundleFolder, index: int, bundle_hash: bytes, data: bytes) -> LedgerFile:
    with folder.writing(index) as (out, path):
        out.write(data)
        out.flush()
        return folder.finish(path, index, bundle_hash)


def _move(con: Connection, index: int, file: LedgerFile, size_bytes: int) -> None:
    move_old_data(con, index, file, size_bytes)
