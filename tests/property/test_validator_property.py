"""Properties of the validator's pure parts."""

from __future__ import annotations

from contextlib import suppress

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from emcd.accounting.assignment import probe_window_ms
from emcd.errors import RemoteProtocolError
from emcd.inference.minilm import MINILM_MANIFEST
from emcd.proto.hashing import keccak
from emcd.proto.openai import ENDPOINTS, read_request
from emcd.testing import make_key
from emcd.types import Address
from emcd_validator.call_shape import CallShape
from emcd_validator.corpus import Leaf, decode_leaf, encode_leaf, find_fault
from emcd_validator.corpus_tree import build_levels, build_path, compute_root, is_leaf
from emcd_validator.judge import Judgement
from emcd_validator.judge_embedding import read_answer
from emcd_validator.plan import Draws, Slot, draw_plan
from emcd_validator.probe_request import build_probe, list_requests, path_of, upstream_hash
from emcd_validator.statement import read_commitment, read_evidence, read_reveal, read_seals, read_votes
from tests.support.evidence_node import TEXT_MANIFEST
from tests.support.validator_world import make_deployment

PARAMS = make_deployment(1_800_000_000).params
NODES = [make_key(f"node-{i}").address for i in range(5)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["vote", "votes", "reveal", "signature", "probes", "seal", "x"]), inner
        )
    ),
    max_leaves=12,
)
leaves = st.builds(
    Leaf,
    st.binary(min_size=16, max_size=16),
    st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=4).map(tuple),
    st.just(True),
    st.sampled_from(["", "float", "base64"]),
    st.none()
    | st.builds(
        CallShape,
        st.sampled_from(["chat", "completions"]),
        st.text(max_size=20),
        st.booleans(),
        st.none() | st.integers(-1, 2_001),
        st.none() | st.integers(0, 1_001),
        st.integers(-1, 9_000),
        st.sampled_from(["max_tokens", "max_completion_tokens"]),
        st.booleans(),
        st.integers(0, 4),
        st.integers(0, 4),
    ),
)


@given(st.integers(1, 70), st.data())
def test_tree_any_size_opens_each_leaf_at_its_index_alone(count: int, data: st.DataObject) -> None:
    hashes = [keccak(bytes([i])) for i in range(count)]
    levels = build_levels(hashes)
    root = compute_root(count, levels[-1][0])
    index, other = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, count + 3))
    path = build_path(levels, index)
    assert is_leaf(root, count, index, hashes[index], path)
    assert is_leaf(root, count, other, hashes[index], path) == (other == index)


@given(leaves)
def test_leaf_round_trips_unless_it_is_at_fault(leaf: Leaf) -> None:
    if not find_fault(leaf):
        assert decode_leaf(encode_leaf(leaf)) == leaf


@given(st.binary(max_size=200))
def test_leaf_garbage_is_refused_or_canonical(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert encode_leaf(decode_leaf(data)) == data


@given(st.binary(min_size=32, max_size=32), st.integers(0, 30), st.integers(1, 3))
def test_plan_draws_distinct_leaves_within_the_window(seed: bytes, leaf_count: int, slots: int) -> None:
    wanted = [Slot(node, slot) for node in NODES for slot in range(slots)]
    plan = draw_plan(Draws(seed, keccak(b"beacon")), wanted, leaf_count, PARAMS, 9)
    drawn = [item.leaf_index for item in plan if item.leaf_index is not None]
    assert len(drawn) == len(set(drawn)) == min(leaf_count, len(wanted))
    assert all(0 <= index < leaf_count for index in drawn)
    first, last = probe_window_ms(PARAMS, 9)
    assert all(first <= item.due_at_ms < last for item in plan)


@given(leaves, st.sampled_from(NODES))
def test_request_node_choice_never_reaches_the_node(leaf: Leaf, node: Address) -> None:
    assume(not find_fault(leaf))
    draws = Draws(bytes(32), keccak(b"beacon"))
    one, other = (build_probe(draws, Slot(n, 0), leaf, MINILM_MANIFEST, len) for n in (NODES[0], node))
    assert path_of(one.body) == one.path
    assert upstream_hash(one.path, one.body) == upstream_hash(other.path, other.body) is not None


@given(leaves, st.integers(16, 4_096), st.integers(0, 2**32))
def test_request_to_a_text_model_fits_its_context_and_can_be_forwarded(
    leaf: Leaf, context: int, number: int
) -> None:
    assume(not find_fault(leaf))
    manifest = msgspec.structs.replace(TEXT_MANIFEST, context_tokens=context)
    draws = Draws(number.to_bytes(32, "big"), keccak(b"beacon"))
    for request in list_requests(draws, Slot(NODES[0], 0), leaf, manifest, len):
        made = read_request(ENDPOINTS[request.path], request.body, evidence=True)
        assert made.hidden is None
        table = msgspec.json.decode(request.body)
        limit = table.get("max_tokens", table.get("max_completion_tokens", 1))
        assert limit + len(table.get("prompt", "")) <= context


@given(st.binary(max_size=300))
def test_answer_garbage_is_an_error_never_an_exception(body: bytes) -> None:
    outcome = read_answer(body, 1, 384)
    assert isinstance(outcome, Judgement)


@given(JSON)
def test_pages_garbage_is_refused(page: object) -> None:
    for read in (read_commitment, read_reveal, read_votes, read_seals, read_evidence):
        with suppress(RemoteProtocolError):
            read(page)
