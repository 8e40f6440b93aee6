"""The protocol a second time, from its documents, sharing no code with `emcd`.

Signatures go through eth-account's `encode_typed_data` with type strings written out here; trees
follow OpenZeppelin's documented algorithm by recursion; emission and rewards are plain fractions.
Bundles are in `second_bundle.py`. Tests compare it with the real thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

TYPES = {
    "Forward": "bytes16 callId,address hub,address router,address node,bytes32 requestHash,"
    "bytes32 modelHash,uint32 priceVersion,uint64 startedAtMs",
    "Receipt": "bytes32 forwardHash,bytes32 responseHash,uint16 httpStatus,uint64 inputTokens,"
    "uint64 outputTokens,uint64 startedAtMs,uint64 finishedAtMs",
    "Delivery": "bytes32 forwardHash,bytes32 receiptHash,bytes32 bodyHash,uint8 status,"
    "uint64 creditsMicro,uint64 vaultMicro,uint64 round,uint64 finishedAtMs",
    "RecordBatch": "address signer,uint8 kind,bytes32 root,uint32 count,uint64 signedAtMs",
    "Binding": "address node,address wallet,uint8 role,uint256 nonce,uint256 deadline",
    "Slash": "address node,uint16 bps,bytes32 evidenceHash,uint64 epoch",
    "Offence": "uint8 kind,address offender,uint64 round",
    "RoundRoot": "uint64 round,bytes32 bundleHash,bytes32 root,uint256 cumulativeWei",
    "Veto": "uint64 round,bytes32 bundleHash,bytes32 root",
    "Extraction": "address wallet,address recipient,uint64 throughRound,bool submit,uint256 nonce,"
    "uint256 deadline",
    "TunnelAuth": "address sender,address receiver,bytes32 senderNonce,bytes32 receiverNonce,"
    "uint64 expiresAtMs,uint8 role",
    "NodeStatus": "address node,address hub,uint64 sequence,uint64 sentAtMs,bytes32[] models,"
    "uint32 capacity,uint32 inFlight,string version,string gpu",
    "RouterStatus": "address router,address hub,uint64 sequence,uint64 sentAtMs,uint32 nodes,"
    "uint32 inFlight,string version,string region",
    "Results": "address validator,uint64 round,bytes32 probesHash,uint64 signedAtMs",
    "Task": "address sender,address receiver,uint64 round,bytes32 taskHash",
    "TaskResult": "address validator,uint64 round,bytes32 taskHash,uint8 verdict,uint64 statisticE12",
    "Challenge": "address validator,address node,bytes16 callId,bytes32 knowledge,uint64 deadlineMs",
    "BundleSeal": "address hub,uint64 round,bytes32 bundleHash",
    "PlanCommitment": "address validator,uint64 round,bytes32 commitment,uint64 signedAtMs",
    "Reveal": "address validator,uint64 round,bytes32 seed,bytes32 corpusRoot,bytes32 salt,"
    "bytes32 probesHash",
    "Vote": "address validator,uint64 round,bytes16 callId,bytes32 receiptHash,uint8 verdict,"
    "uint64 statisticE12",
}


# ------------------------------------------------------------------------------------ EIP-712


def make_typed_data(chain_id: int, contract: str, name: str, values: list[Any]) -> dict[str, Any]:
    """The JSON form of a message, its values in the order of its type."""
    members = [dict(zip(("type", "name"), part.split(), strict=True)) for part in TYPES[name].split(",")]
    return {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            name: members,
        },
        "primaryType": name,
        "domain": {"name": "emcd", "version": "1", "chainId": chain_id, "verifyingContract": contract},
        "message": {member["name"]: value for member, value in zip(members, values, strict=True)},
    }


def struct_hash(typed_data: dict[str, Any]) -> bytes:
    return bytes(encode_typed_data(full_message=typed_data).body)


def digest(typed_data: dict[str, Any]) -> bytes:
    signable = encode_typed_data(full_message=typed_data)
    return keccak(b"\x19" + signable.version + signable.header + signable.body)


def recover(typed_data: dict[str, Any], signature: bytes) -> str:
    return str(Account.recover_message(encode_typed_data(full_message=typed_data), signature=signature))


def sign(typed_data: dict[str, Any], secret: bytes) -> bytes:
    return bytes(Account.sign_message(encode_typed_data(full_message=typed_data), secret).signature)


# ------------------------------------------------------------------------------------ trees


def tree_root(leaves: list[bytes], node: int = 0) -> bytes:
    """A complete binary tree in an array of 2n-1, the leaves at its end in reverse order."""
    size = 2 * len(leaves) - 1
    if node >= len(leaves) - 1:
        return leaves[size - 1 - node]
    return keccak(b"".join(sorted((tree_root(leaves, 2 * node + 1), tree_root(leaves, 2 * node + 2)))))


def climb(leaf: bytes, proof: list[bytes]) -> bytes:
    return climb(keccak(b"".join(sorted((leaf, proof[0])))), proof[1:]) if proof else leaf


def standard_leaf(address: str, amount: int) -> bytes:
    return keccak(keccak(bytes.fromhex(address[2:]).rjust(32, b"\0") + amount.to_bytes(32, "big")))


def standard_root(values: Mapping[Any, int]) -> bytes:
    """StandardMerkleTree.of(values, ["address", "uint256"]).root"""
    return tree_root(sorted(standard_leaf(address, amount) for address, amount in values.items()))


# ------------------------------------------------------------------------------------ money


def issue_wei(index: int) -> int:
    return scheduled_floor(index + 1) - scheduled_floor(index)


def scheduled_floor(rounds: int) -> int:
    """Rounds counted period by period, as the schedule is told."""
    total, rate, period = Fraction(0), Fraction(50_000 * 10**18), 1
    while True:
        length = 90 * 2 ** ((period - 1) // 4) * 12
        total += rate / 12 * min(rounds, length)
        rounds -= length
        if rounds <= 0 or total >= 10**26:
            return min(int(total), 10**26)
        period += 1
        rate = rate * (1 + Fraction(1, period)) ** period / Fraction("3.1416")


def rewards(issue: int, weights: Mapping[Any, int]) -> dict[Any, int]:
    """Shares in exact fractions, cut, then the rest to the largest cuts, lower addresses first."""
    total = sum(weights.values())
    if not total:
        return dict.fromkeys(weights, 0)
    shares = {address: Fraction(issue * weight, total) for address, weight in weights.items()}
    given = {address: int(share) for address, share in shares.items()}
    for _ in range(issue - sum(given.values())):
        best = min(given, key=lambda a: (given[a] - shares[a], int(a, 16)))
        given[best] += 1
    return given


def multiplier_bps(role: int, lock_days: int) -> int:
    return {0: 10_000, 7: 14_000, 30: 27_000, 90: 62_000, 180: 100_000}[lock_days] if role == 1 else 10_000


def read_bundle(data: bytes) -> dict[str, list[Any]]:
    """The sections of a bundle as plain lists (`second_bundle.py`)."""
    from tests.support.second_bundle import read_bundle as read

    return read(data)


def recompute_root(data: bytes) -> dict[str, Any]:
    """Issue, root and cumulative wei of a bundle, from the credits and reasons it states."""
    sections = read_bundle(data)
    header = sections["header"][0]
    people = {row[0]: row for row in sections["participants"]}
    credits = {row[0]: row[1] for row in sections["results"] if row[4] == "" and row[0] in people}
    weights = {
        node: credit
        * int.from_bytes(people[node][3], "big")
        * multiplier_bps(people[node][2], people[node][4])
        for node, credit in credits.items()
    }
    publish_fee = int.from_bytes(header[6][21], "big")
    issue = max(0, issue_wei(header[1]) - publish_fee) if any(weights.values()) else 0
    totals = {row[0]: int.from_bytes(row[1], "big") for row in sections["totals"]}
    for node, reward in rewards(issue, weights).items():
        wallet = people[node][1]
        totals[wallet] = totals.get(wallet, 0) + reward
    totals = {wallet: amount for wallet, amount in totals.items() if amount}
    return {
        "issue_wei": issue,
        "cumulative_wei": sum(totals.values()),
        "root": standard_root(totals) if totals else bytes(32),
        "totals": {to_checksum_address(wallet): amount for wallet, amount in totals.items()},
    }
