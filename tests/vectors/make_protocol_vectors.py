"""Writes the protocol's own conformance vectors beside this file.

Run from the root of the tree: `python tests/vectors/make_protocol_vectors.py`. With `--check` it
writes nothing and fails when a file would change. Everything is derived from names, so two runs
give the same bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from emcd.accounting.assignment import assign_probes, draw_leaf, draw_time_ms
from emcd.accounting.audit import audit_bundle
from emcd.accounting.conformance import TYPED_STRUCTS
from emcd.accounting.reward_tree import RewardTree
from emcd.proto.address import address_of_key, hex_hash
from emcd.proto.bundle_codec import encode_bundle
from emcd.proto.eip712 import Domain, TypedStruct, digest, typed_data
from emcd.proto.hashing import keccak
from emcd.proto.json_form import to_json
from emcd.proto.merkle import build_proof, build_tree, record_leaf
from emcd.proto.messages import Verdict
from emcd.proto.params import ModelStanding, devnet_params, mainnet_params
from emcd.proto.signing import sign
from tests.support.round_world import (
    CHAIN_ID,
    GENESIS_S,
    STAKING,
    SealedBundle,
    World,
    address_of,
    edited,
    enforcing_params,
    secret_of,
)

FOLDER = Path(__file__).parent


def make_value(kind: str, name: str, position: int) -> Any:
    """A value of a Solidity type that depends on the field."""
    seed = keccak(f"{name}.{position}".encode())
    if kind == "address":
        return address_of(f"{name}.{position}")
    if kind == "bool":
        return position % 2 == 1
    if kind == "string":
        return f"{name} {position} é"
    if kind.startswith("uint"):
        return int.from_bytes(seed, "big") >> (256 - min(int(kind[4:]), 48))
    if kind.startswith("bytes") and not kind.endswith("[]"):
        return seed[: int(kind[5:])]
    return (seed, keccak(seed))


def messages() -> dict[str, Any]:
    domain = Domain(CHAIN_ID, STAKING)
    rows = []
    for name, kind in sorted(TYPED_STRUCTS.items()):
        struct: TypedStruct = kind(*[make_value(text, name, i) for i, text in enumerate(kind.eip712)])
        secret = secret_of(name)
        rows.append({
            "type": name,
            "type_string": kind.type_string(),
            "value": to_json(struct),
            "typed_data": typed_data(domain, struct),
            "msgpack": hex_hash(msgspec.msgpack.encode(struct)),
            "struct_hash": hex_hash(struct.struct_hash()),
            "digest": hex_hash(digest(domain, struct)),
            "secret": hex_hash(secret),
            "signer": address_of_key(secret),
            "signature": hex_hash(sign(domain, struct, secret)),
        })  # fmt: skip
    return {
        "rule": "EIP-712, domain name emcd, version 1; msgpack is the array of the fields; signatures are r, s, v "
        "with low s and RFC 6979 nonces; all are signed for one contract here",
        "chain_id": CHAIN_ID,
        "verifying_contract": STAKING,
        "typed_messages": rows,
    }


def batches() -> dict[str, Any]:
    rows = []
    for count in (1, 2, 3, 5, 8, 13, 256):
        hashes = [keccak(f"record {number} of {count}".encode()) for number in range(count)]
        tree = build_tree([record_leaf(item) for item in hashes])
        proofs = [[hex_hash(item) for item in build_proof(tree, leaf)] for leaf in range(min(count, 13))]
        rows.append(
            {"record_hashes": list(map(hex_hash, hashes)), "root": hex_hash(tree[0]), "proofs": proofs}
        )
    return {
        "rule": "leaf = keccak(struct hash); leaf i of n at position 2n-2-i of a heap of 2n-1 nodes; parent = keccak of "
        "both children, the smaller first; a proof leads from the leaf up; the first 13 proofs are given",
        "batches": rows,
    }


def reward_trees() -> dict[str, Any]:
    rows = []
    for count in (1, 2, 3, 7, 20):
        totals = {address_of(f"wallet {n}"): 10 ** (n % 27) + n for n in range(count)}
        tree = RewardTree(totals)
        rows.append({
            "values": [[wallet, str(amount)] for wallet, amount in totals.items()],
            "root": hex_hash(tree.root),
            "proofs": {wallet: [hex_hash(item) for item in tree.proof(wallet)] for wallet in totals},
            "dump": tree.dump(),
        })  # fmt: skip
    return {
        "rule": "OpenZeppelin standard-v1 over (address, uint256): leaf = keccak(keccak(abi.encode(...))), leaves sorted",
        "trees": rows,
    }


def bundles() -> dict[str, Any]:
    small = World(node_names=("node-1",), calls_per_node=1)
    first = small.close({"totals": {}, "previous_round": -1, "previous_bundle_hash": bytes(32)})
    struck = World(verdicts={"node-2": Verdict.GROSS, "node-3": Verdict.FAIL}).close()
    empty = World(node_names=(), validator_names=(), calls_per_node=0).close()
    greedy = struck.bundle.results[-1]
    richer = edited(greedy, credits_micro=greedy.credits_micro + 1)
    forged = edited(struck.bundle, results=(*struck.bundle.results[:-1], richer))
    rows = []
    old = b"EMCDBDL1" + first.data[8:]
    fine = (first.data, struck.data, empty.data, contested().data, shadowed().data)
    for data in (*fine, encode_bundle(forged), first.data[:-1], old):
        outcome = audit_bundle(data)
        rows.append({
            "bytes": hex_hash(data),
            "difference": str(outcome.difference or ""),
            "bundle_hash": hex_hash(outcome.bundle_hash) if outcome.bundle_hash else "",
            "round_root": to_json(outcome.round_root) if outcome.ok else None,
            "results": [to_json(entry) for entry in outcome.result.results] if outcome.result else None,
        })  # fmt: skip
    return {
        "rule": "EMCDBDL3, then 12 sections of u32 count, u64 size and frames of u32 length, u32 CRC-32, content; a frame "
        "is the msgpack array of a record, in calls and batches columns of 4096 and 256 (emcd/proto/bundle_codec.py tells "
        "them, tests/support/second_bundle.py writes them again); section hash = keccak(count || keccak of each content), "
        "bundle hash = keccak(magic || section hashes); `difference` is what an audit finds first, empty for none",
        "bundles": rows,
    }


def contested() -> SealedBundle:
    """A prober's PASS that all others call a GROSS; every PASS is to be checked again, and few are."""
    params = edited(enforcing_params(), recheck_bps=10_000)
    world = World(node_names=("node-1",), calls_per_node=1, params=params)
    prober, probe = next((v, p) for v, rows in world.probes.items() for p in rows if p.slot == 0)
    call = next(call for call in world.calls if call.forward.call_id == probe.call_id)
    voters = [name for name in world.validator_names if address_of(name) != prober]
    return world.close(votes=[world.make_vote(name, call, Verdict.GROSS) for name in voters])


def shadowed() -> SealedBundle:
    """FAILs of a model that no parameter names."""
    params = enforcing_params(ModelStanding.SHADOW)
    return World(
        node_names=("node-1",), calls_per_node=1, verdicts={"node-1": Verdict.FAIL}, params=params
    ).close()


def assignments() -> dict[str, Any]:
    rows = []
    for name, params in (("devnet", devnet_params(GENESIS_S)), ("mainnet", mainnet_params(GENESIS_S))):
        beacon = keccak(name.encode())
        nodes = [address_of(f"node {n}") for n in range(5)]
        validators = [(address_of(f"validator {n}"), (n + 1) * 10**24) for n in range(4)]
        seeds = {address: keccak(b"seed of " + address.encode()) for address, _ in validators}
        probes = [
            [
                p.validator,
                p.node,
                p.slot,
                draw_time_ms(seeds[p.validator], beacon, p.node, p.slot, params, 11),
            ]
            for p in assign_probes(beacon, 11, nodes, validators, params)
        ]
        rows.append({
            "beacon_hash": hex_hash(beacon),
            "round": 11,
            "nodes": nodes,
            "validators": [[address, str(power)] for address, power in validators],
            "params": to_json(params),
            "seeds": {address: hex_hash(seed) for address, seed in seeds.items()},
            "probes": probes,
        })  # fmt: skip
    draws = []
    for number in range(8):
        seed, beacon, node = keccak(b"seed"), keccak(b"beacon"), address_of(f"node {number}")
        leaf = draw_leaf(seed, beacon, node, number % 2, 20_000)
        draws.append({
            "seed": hex_hash(seed), "beacon_hash": hex_hash(beacon), "node": node, "slot": number % 2,
            "leaf_count": 20_000, "leaf": leaf,
        })  # fmt: skip
    return {
        "rule": "draw = keccak(keccak('emcd:' || label) || inputs) mod bound; prober: beacon, u64 round, node, u8 slot; "
        "leaf and time: labels probe:leaf and probe:time, the prober's seed, beacon, node, u8 slot. Probers by stake, "
        "without replacement; a probe is validator, node, slot, time in ms; times from 20 % (at most 240 s) "
        "of the round to 85 % (or 90 s before its end, where that is later)",
        "assignments": rows,
        "leaf_draws": draws,
    }


FILES = {
    "messages.json": messages,
    "batch_tree.json": batches,
    "reward_tree.json": reward_trees,
    "bundle.json": bundles,
    "assignment.json": assignments,
}


def render(name: str) -> str:
    return json.dumps(FILES[name](), indent=1) + "\n"


def main() -> int:
    stale = []
    for name in FILES:
        text = render(name)
        path = FOLDER / name
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text, "utf-8")
    print("changed:", ", ".join(stale) or "nothing")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    raise SystemExit(main())
