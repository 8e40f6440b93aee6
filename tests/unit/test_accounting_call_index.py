from __future__ import annotations

import numpy as np
import pytest

from emcd.accounting.audit import audit_bundle
from emcd.accounting.call_index import CallIdIndex
from emcd.accounting.expectation import Expectation
from emcd.proto.bundle_codec import BundleReader, read_call_ids
from emcd.proto.hashing import keccak
from tests.support.round_world import World

IDS = sorted([bytes(16), b"\xff" * 16, bytes(15) + b"\x01", *(keccak(b"%d" % n)[:16] for n in range(50))])
INDEX = CallIdIndex([b"".join(IDS[::2]), b"", b"".join(IDS[1::2])])


def test_index_holds_what_was_put_in_and_nothing_else() -> None:
    assert len(INDEX) == len(IDS)
    assert all(call_id in INDEX for call_id in IDS)
    assert keccak(b"none")[:16] not in INDEX
    assert b"" not in INDEX
    assert IDS[0][:15] not in INDEX
    assert 7 not in INDEX


@pytest.mark.parametrize("row", [0, 3, 9])
def test_index_finds_the_first_row_of_a_group(row: int) -> None:
    ids = [keccak(b"strange %d" % n)[:16] for n in range(10)]
    ids[row] = IDS[7]
    ids[-1] = IDS[8]
    assert INDEX.find_first(np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 16)) == row


def test_index_of_nothing_finds_nothing() -> None:
    assert CallIdIndex([]).find_first(np.frombuffer(b"".join(IDS), np.uint8).reshape(-1, 16)) == -1


@pytest.mark.parametrize("position", [0, 5, -1])
def test_audit_refuses_a_settled_call_by_index_and_by_set_alike(position: int) -> None:
    closed = World().close()
    ids = read_call_ids(BundleReader(closed.data))
    wanted = list(range(closed.calls))[position]
    one = ids[16 * wanted : 16 * wanted + 16]
    for settled in ({one}, CallIdIndex([b"".join(sorted([one, bytes(16)]))])):
        difference = audit_bundle(closed.data, Expectation(settled_call_ids=settled)).difference
        assert difference is not None
        assert (difference.code, difference.index, difference.record) == (
            "EMC-1915",
            wanted,
            "0x" + one.hex(),
        )
        assert difference.effect.endswith("a second time")
    assert audit_bundle(closed.data, Expectation(settled_call_ids=CallIdIndex([bytes(16)]))).ok
