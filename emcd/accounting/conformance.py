"""Recomputes conformance vectors of every kind and names the first difference.

A kind is known by its top-level keys. Another implementation of the protocol is right when it
passes the same files. Values are JSON as `emcd.proto.json_form` writes it; every file has a
"rule" that tells what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from emcd.accounting.assignment import assign_probes, draw_leaf, draw_time_ms
from emcd.accounting.audit import audit_bundle
from emcd.accounting.emission import cumulative_wei, epoch_reward, issue_wei
from emcd.accounting.gumbel import choose, gumbel_noise
from emcd.accounting.reward_tree import RewardTree
from emcd.accounting.settlement import split_rewards
from emcd.accounting.token_check import Position, ProbeKind, Sampling, judge_text
from emcd.accounting.verdict import NumericClass
from emcd.accounting.weights import reward_weight
from emcd.errors import ConfigError, ProtocolError
from emcd.proto import messages, records
from emcd.proto.address import address_from_bytes, address_of_key, hex_hash
from emcd.proto.eip712 import Domain, TypedStruct, digest, typed_data
from emcd.proto.json_form import from_json, to_json
from emcd.proto.merkle import build_proof, build_tree, record_leaf
from emcd.proto.params import NetworkParams
from emcd.proto.signing import recover_digest, sign_digest
from emcd.types import Address, ParticipantRole

STATISTIC_STEP = 1e-9
"""How far two libraries' logarithms may put a statistic apart."""
Check = tuple[str, Any, Any]
"""Where, what the file says, what comes out."""

TYPED_STRUCTS: dict[str, type[TypedStruct]] = {
    kind.__name__: kind
    for module in (records, messages)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, TypedStruct) and kind is not TypedStruct
}


@dataclass(frozen=True)
class VectorOutcome:
    """What came of one file; `difference` is empty when every value was reproduced."""

    kind: str
    checked: int
    difference: str


def check_vectors(table: Any) -> VectorOutcome:
    """Recompute one decoded vector file.

    Raises: ConfigError EMC-1950 when it is of no known kind or not well formed.
    """
    kind = next(
        (name for name, (keys, _) in _KINDS.items() if isinstance(table, dict) and keys <= table.keys()), None
    )
    if kind is None:
        raise ConfigError("EMC-1950", f"known kinds of vectors: {', '.join(_KINDS)}")
    checked = 0
    try:
        for where, stated, computed in _KINDS[kind][1](table):
            checked += 1
            if stated != computed:
                return VectorOutcome(kind, checked, f"{where} is {_cut(stated)}, recomputed {_cut(computed)}")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ProtocolError) as exc:
        raise ConfigError("EMC-1950", f"{kind}: {type(exc).__name__}: {exc}") from exc
    if not checked:
        raise ConfigError("EMC-1950", f"{kind}: the file holds nothing to check")
    return VectorOutcome(kind, checked, "")


def _check_emission(table: Any) -> Iterator[Check]:
    for period, reward in table["period_epoch_reward_tokens"].items():
        yield f"period {period}", reward, str(float(epoch_reward(int(period))))
    for row in table["rounds"]:
        index = row["round_index"]
        yield f"round {index} issued_wei", row["issued_wei"], str(issue_wei(index))
        yield f"round {index} cumulative_wei", row["cumulative_wei"], str(cumulative_wei(index))
    last = table["first_round_index_that_reaches_the_cap"]
    reaches = cumulative_wei(last) == cumulative_wei(last + 1) > cumulative_wei(last - 1)
    yield f"round {last} reaches the cap", True, reaches


def _check_settlement(table: Any) -> Iterator[Check]:
    params = NetworkParams(0)
    for number, case in enumerate(table["cases"]):
        weights = {}
        for row in case["participants"]:
            role = ParticipantRole[row["role"].upper()]
            credits_micro, stake_wei = int(row["credits_micro"]), int(row["stake_wei"])
            weights[_address(row["address"])] = reward_weight(
                params, credits_micro, stake_wei, role, row["lock_days"]
            )
        rewards = split_rewards(int(case["issued_wei"]), weights)
        for row in case["participants"]:
            where = f"case {number} {row['address']} reward_wei"
            yield where, row["reward_wei"], str(rewards[_address(row["address"])])


def _check_messages(table: Any) -> Iterator[Check]:
    domain = Domain(table["chain_id"], table["verifying_contract"])
    for row in table["typed_messages"]:
        name, kind = row["type"], TYPED_STRUCTS[row["type"]]
        struct, secret = from_json(kind, row["value"]), bytes.fromhex(row["secret"][2:])
        yield f"{name} type_string", row["type_string"], kind.type_string()
        yield f"{name} typed_data", row["typed_data"], typed_data(domain, struct)
        yield f"{name} msgpack", row["msgpack"], hex_hash(msgspec.msgpack.encode(struct))
        yield f"{name} struct_hash", row["struct_hash"], hex_hash(struct.struct_hash())
        yield f"{name} digest", row["digest"], hex_hash(digest(domain, struct))
        yield f"{name} signature", row["signature"], hex_hash(sign_digest(digest(domain, struct), secret))
        signature = bytes.fromhex(row["signature"][2:])
        yield f"{name} signer", row["signer"], recover_digest(digest(domain, struct), signature)
        yield f"{name} secret", row["signer"], address_of_key(secret)


def _check_batches(table: Any) -> Iterator[Check]:
    for number, row in enumerate(table["batches"]):
        leaves = [record_leaf(bytes.fromhex(item[2:])) for item in row["record_hashes"]]
        tree = build_tree(leaves)
        yield f"batch {number} root", row["root"], hex_hash(tree[0])
        for leaf, proof in enumerate(row["proofs"]):
            yield f"batch {number} proof {leaf}", proof, [hex_hash(item) for item in build_proof(tree, leaf)]


def _check_trees(table: Any) -> Iterator[Check]:
    for number, row in enumerate(table["trees"]):
        tree = RewardTree({_address(wallet): int(amount) for wallet, amount in row["values"]})
        yield f"tree {number} root", row["root"], hex_hash(tree.root)
        for wallet, proof in row["proofs"].items():
            computed = [hex_hash(item) for item in tree.proof(_address(wallet))]
            yield f"tree {number} proof of {wallet}", proof, computed
        yield f"tree {number} dump", row["dump"], tree.dump()


def _check_bundles(table: Any) -> Iterator[Check]:
    for number, row in enumerate(table["bundles"]):
        outcome = audit_bundle(bytes.fromhex(row["bytes"][2:]))
        yield f"bundle {number} difference", row["difference"], str(outcome.difference or "")
        if outcome.bundle_hash is not None:
            yield f"bundle {number} bundle_hash", row["bundle_hash"], hex_hash(outcome.bundle_hash)
        if outcome.result is not None:
            yield f"bundle {number} round_root", row["round_root"], to_json(outcome.round_root)
            results = [to_json(entry) for entry in outcome.result.results]
            yield f"bundle {number} results", row["results"], results


def _check_assignments(table: Any) -> Iterator[Check]:
    for number, row in enumerate(table["assignments"]):
        params = from_json(NetworkParams, row["params"])
        validators = [(Address(address), int(power)) for address, power in row["validators"]]
        seeds = {validator: bytes.fromhex(seed[2:]) for validator, seed in row["seeds"].items()}
        beacon, index = bytes.fromhex(row["beacon_hash"][2:]), row["round"]
        computed = [
            [
                p.validator,
                p.node,
                p.slot,
                draw_time_ms(seeds[p.validator], beacon, p.node, p.slot, params, index),
            ]
            for p in assign_probes(beacon, index, row["nodes"], validators, params)
        ]
        yield f"assignment {number}", row["probes"], computed
    for row in table["leaf_draws"]:
        seed, beacon = bytes.fromhex(row["seed"][2:]), bytes.fromhex(row["beacon_hash"][2:])
        leaf = draw_leaf(seed, beacon, row["node"], row["slot"], row["leaf_count"])
        yield f"leaf of {row['node']} slot {row['slot']}", row["leaf"], leaf


def _check_sampler(table: Any) -> Iterator[Check]:
    for row in table["noises"]:
        noise = gumbel_noise(int(row["seed"]), row["t"], row["token"])
        yield f"noise of token {row['token']} at {row['t']}", row["noise"], f"{noise:.12f}"
    for number, row in enumerate(table["choices"]):
        sampling = _read_sampling(row["sampling"])
        token = choose(
            _read_candidates(row),
            log_total=row["log_total"],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed,
            t=row["t"],
        )
        yield f"choice {number}", row["token"], token


def _check_text(table: Any) -> Iterator[Check]:
    for number, row in enumerate(table["answers"]):
        positions = [
            Position(
                dict(item["reported"]),
                dict(item["own"]),
                item["chosen"],
                item["chosen_logit"],
                _read_candidates(item),
                item["log_total"],
            )
            for item in row["positions"]
        ]
        judgement = judge_text(
            ProbeKind(row["kind"]),
            positions,
            _read_sampling(row["sampling"]),
            numeric_class=NumericClass(row["numeric_class"]),
        )
        for name in ("d", "m", "w", "first"):
            value: float = getattr(judgement, name)
            is_near = abs(value - float(row[name])) <= STATISTIC_STEP
            yield f"answer {number} {name}", row[name], row[name] if is_near else f"{value:.9f}"
        yield f"answer {number} verdict", row["verdict"], judgement.verdict.name


def _read_candidates(row: Any) -> list[tuple[int, float]]:
    return [(token, logit) for token, logit in row["candidates"]]


def _read_sampling(row: Any) -> Sampling:
    return Sampling(row["temperature"], row["top_p"], row["top_k"], int(row["seed"]))


def _address(text: str) -> Address:
    return address_from_bytes(bytes.fromhex(text.removeprefix("0x")))


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "..."


_KINDS: dict[str, tuple[set[str], Callable[[Any], Iterator[Check]]]] = {
    "emission": ({"rounds", "period_epoch_reward_tokens"}, _check_emission),
    "settlement": ({"cases"}, _check_settlement),
    "messages": ({"typed_messages", "verifying_contract"}, _check_messages),
    "batch trees": ({"batches"}, _check_batches),
    "reward trees": ({"trees"}, _check_trees),
    "bundles": ({"bundles"}, _check_bundles),
    "assignments": ({"assignments", "leaf_draws"}, _check_assignments),
    "sampler": ({"noises", "choices"}, _check_sampler),
    "text answers": ({"answers"}, _check_text),
}
