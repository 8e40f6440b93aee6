"""Bundles of earlier formats: kept as they are, and the ids of their calls are still found."""

from __future__ import annotations

import pytest

from emcd.accounting.audit import audit_bundle
from emcd.proto.bundle_codec import BundleReader, read_call_ids
from emcd.proto.bundle_frame import MAGIC
from emcd_hub.rounds import old_bundle
from emcd_hub.rounds.old_bundle import is_old, list_old_call_ids
from tests.support.round_world import World


@pytest.mark.parametrize("calls", [0, 1, 40])
def test_second_formats_call_ids_are_found(calls: int) -> None:
    """Its calls stand where they stand today; what differs are parameters in the header."""
    data = World(node_names=("node-1", "node-2"), calls_per_node=calls).close().data
    second = b"EMCDBDL2" + data[8:]

    assert is_old(second)
    assert not is_old(data)
    assert list_old_call_ids(second) == read_call_ids(BundleReader(data))


def test_second_formats_call_ids_of_several_groups_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of two, written by hand: frames of ids and some other columns."""
    monkeypatch.setattr(old_bundle, "_GROUP_CALLS", 2)
    ids = [bytes([n]) * 16 for n in range(5)]
    frames = b""
    for start in range(0, 5, 2):
        content = b"".join(ids[start : start + 2]) + b"other columns"
        frames += len(content).to_bytes(4, "big") + bytes(4) + content
    sections = b"".join(n.to_bytes(4, "big") + (n).to_bytes(8, "big") + bytes(n) for n in (1, 2, 3, 4))
    calls = (5).to_bytes(4, "big") + len(frames).to_bytes(8, "big") + frames

    assert list_old_call_ids(b"EMCDBDL2" + sections + calls) == b"".join(ids)


@pytest.mark.parametrize("number", [1, 2])
def test_earlier_format_is_refused_by_name(number: int) -> None:
    old = b"EMCDBDL%d" % number + World(node_names=(), calls_per_node=0).close().data[8:]
    outcome = audit_bundle(old)

    assert outcome.difference is not None
    assert outcome.difference.code == "EMC-1901"
    assert f"format {number}, this program reads {MAGIC[-1:].decode()}" in str(outcome.difference)
