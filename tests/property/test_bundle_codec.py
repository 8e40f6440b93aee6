"""Bundles survive: round trips, garbage, damage, and rounds made up at random."""

from __future__ import annotations

from functools import cache
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emcd.accounting.audit import audit_bundle
from emcd.accounting.expectation import Expectation
from emcd.errors import RemoteProtocolError
from emcd.proto.bundle_codec import MAGIC, Section, decode_bundle, encode_bundle
from emcd.proto.messages import Verdict
from emcd.proto.records import CallStatus
from tests.support import second_bundle
from tests.support import second_implementation as second
from tests.support.round_world import SealedBundle, World


@cache
def closed() -> SealedBundle:
    return World(verdicts={"node-2": Verdict.GROSS}).close()


@st.composite
def worlds(draw: Any) -> World:
    """Rounds of any shape that honest participants could make."""
    nodes = draw(st.integers(0, 4))
    world = World(
        round=draw(st.integers(1, 60)),
        node_names=[f"node-{n}" for n in range(nodes)],
        validator_names=[f"validator-{n}" for n in range(draw(st.integers(0, 5)))],
        calls_per_node=draw(st.integers(0, 3)),
        batch_records=draw(st.integers(1, 9)),
        verdicts={f"node-{n}": draw(st.sampled_from(Verdict)) for n in range(nodes)},
    )
    for _ in range(draw(st.integers(0, 4)) if nodes else 0):
        world.calls.append(
            world.make_call(
                f"node-{draw(st.integers(0, nodes - 1))}",
                world.params.round_start_ms(world.round) + draw(st.integers(0, 14_000)),
                tokens=(draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))),
                status=draw(st.sampled_from(CallStatus)),
                from_vault=draw(st.booleans()),
            )
        )
    return world


@settings(max_examples=40, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_round_of_any_shape_passes_its_audit_whatever_the_order_it_came_in(world: World, random: Any) -> None:
    result = world.close()
    calls, batches = list(world.calls), world.batches()
    random.shuffle(calls)
    random.shuffle(batches)

    outcome = audit_bundle(result.data)
    again = second.recompute_root(result.data)

    assert outcome.difference is None
    assert outcome.result == result.result
    assert world.close(calls=calls, batches=batches).data == result.data
    assert (again["root"], again["issue_wei"]) == (result.result.root, result.result.issue_wei)
    assert sum(int.from_bytes(r.reward_wei, "big") for r in result.result.results) == result.result.issue_wei
    assert encode_bundle(decode_bundle(result.data)) == result.data
    assert second_bundle.write_bundle(second_bundle.read_bundle(result.data)) == result.data
    assert second_bundle.hash_bundle(result.data) == result.bundle_hash


@given(st.binary(max_size=400), st.booleans())
def test_audit_survives_garbage(data: bytes, with_magic: bool) -> None:
    assert audit_bundle(MAGIC + data if with_magic else data).difference is not None


@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=12))
def test_audit_finds_any_overwritten_bytes(position: int, patch: bytes) -> None:
    data = bytearray(closed().data)
    at = position % (len(data) - len(patch))
    data[at : at + len(patch)] = patch
    difference = audit_bundle(bytes(data)).difference
    assert (difference is None) == (bytes(data) == closed().data)


@given(st.integers(0, 10**9), st.integers(1, 255), st.integers(0, 11))
def test_audit_finds_a_changed_byte_under_a_right_checksum(position: int, flip: int, section: int) -> None:
    """What a hub could do on purpose: the record is changed, its checksum made to fit."""
    data = bytearray(closed().data)
    spans = _spans(bytes(data))
    spans_of = [span for span in spans if span[0] == Section(section)] or spans
    _, start, end = spans_of[position % len(spans_of)]
    data[start + position % (end - start)] ^= flip
    data[start - 4 : start] = crc32(data[start:end]).to_bytes(4, "big")

    outcome = audit_bundle(bytes(data), Expectation(bundle_hash=closed().bundle_hash))

    assert outcome.bundle_hash != closed().bundle_hash
    assert outcome.difference is not None


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 255), st.integers(0, 14))
def test_bundle_that_decodes_encodes_to_the_same_bytes(position: int, value: int, kind: int) -> None:
    """No second encoding: a byte changed under a right checksum is another content, or none."""
    data = bytearray(closed().data)
    spans = _spans(bytes(data))
    chosen = Section(kind) if kind < len(Section) else Section.CALLS if kind % 2 else Section.BATCHES
    of_kind = [span for span in spans if span[0] is chosen] or spans
    _, start, end = of_kind[position % len(of_kind)]
    data[start + position // len(of_kind) % (end - start)] = value
    data[start - 4 : start] = crc32(data[start:end]).to_bytes(4, "big")
    try:
        bundle = decode_bundle(bytes(data))
    except RemoteProtocolError as exc:
        assert exc.code in ("EMC-1901", "EMC-1902", "EMC-1904", "EMC-1912")
        return

    assert encode_bundle(bundle) == bytes(data)


@given(st.binary(max_size=600), st.sampled_from(Section))
def test_decode_survives_garbage_records(raw: bytes, section: Section) -> None:
    data = MAGIC
    for item in Section:
        if item is section:
            data += (1).to_bytes(4, "big") + (len(raw) + 8).to_bytes(8, "big")
            data += len(raw).to_bytes(4, "big") + crc32(raw).to_bytes(4, "big") + raw
        else:
            data += bytes(12)
    with pytest.raises(RemoteProtocolError) as caught:
        decode_bundle(data)
    assert caught.value.code in ("EMC-1901", "EMC-1902", "EMC-1903")


def _spans(data: bytes) -> list[tuple[Section, int, int]]:
    spans, at = [], len(MAGIC)
    for section in Section:
        end = at + 12 + int.from_bytes(data[at + 4 : at + 12], "big")
        at += 12
        while at < end:
            length = int.from_bytes(data[at : at + 4], "big")
            spans.append((section, at + 8, at + 8 + length))
            at += 8 + length
    return spans
