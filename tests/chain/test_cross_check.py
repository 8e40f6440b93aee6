"""Independent proof: a closed round's tree, receipts and attestations, judged by npm packages.

`@openzeppelin/merkle-tree` loads the published tree, `viem` recovers the signatures; types and
domains on that side are written out there. What was changed by a wei, or signed by another key, must be
refused by them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from emcd.accounting.receipt import CallReceipt, check_receipt
from emcd.accounting.reward_tree import build_reward_tree
from emcd.money import decode_wei
from emcd.proto.address import hex_hash
from emcd.proto.eip712 import Domain, TypedStruct, digest
from emcd.proto.json_form import to_json
from emcd.proto.merkle import build_proof, build_tree, record_leaf
from emcd.proto.messages import Binding, BundleSeal, Extraction
from emcd.proto.records import Delivery, Forward, Receipt, RecordKind, RecordProof
from emcd.proto.signing import sign
from emcd_validator.statement import write_round_root
from tests.crosscheck.judge import HERE, Case, Judgement, judge
from tests.support.round_world import DISTRIBUTOR, STAKING, World, address_of, edited, secret_of

pytestmark = pytest.mark.node

CHAIN_ID = 31337
ANOTHER_CHAIN = 1
Edit = Callable[[dict[str, Any]], None]


class Bench:
    """What the network published of one closed round, as JSON that anybody may fetch."""

    def __init__(self) -> None:
        self.world = World()
        self.closed = self.world.close()
        self.tree = build_reward_tree(
            {total.wallet: decode_wei(total.cumulative_wei) for total in self.closed.result.totals_after}
        )

    def tree_data(self) -> dict[str, Any]:
        dump = self.tree.dump()
        wallets = [entry["value"][0] for entry in dump["values"]]
        return {
            "dump": dump,
            "root": hex_hash(self.closed.result.root),
            "proofs": {wallet: [hex_hash(item) for item in self.tree.proof(wallet)] for wallet in wallets},
        }

    def attestation_data(self, signer: str = "validator-1", contract: str = DISTRIBUTOR) -> dict[str, Any]:
        outcome = self.closed.round_root
        signature = sign(Domain(CHAIN_ID, contract), outcome, secret_of(signer))  # type: ignore[arg-type]
        return {
            "attestation": write_round_root(outcome, signature),
            "validator": address_of("validator-1"),
            "chainId": CHAIN_ID,
            "distributor": DISTRIBUTOR,
        }

    def receipt(self, number: int = 0) -> CallReceipt:
        """The receipt of one of the round's calls, its proofs from the batches that were signed."""
        call = self.world.calls[number]
        assert call.receipt is not None
        return CallReceipt(
            call.forward,
            self._proof(RecordKind.FORWARD, call.forward),
            call.receipt,
            self._proof(RecordKind.RECEIPT, call.receipt),
            call.delivery,
            self._proof(RecordKind.DELIVERY, call.delivery),
        )

    def _proof(self, kind: RecordKind, record: Forward | Receipt | Delivery) -> RecordProof:
        wanted = record.struct_hash()
        for batch, signature, hashes in (
            (b.batch, b.signature, b.record_hashes) for b in self.world.batches() if b.batch.kind == kind
        ):
            if wanted in hashes:
                tree = build_tree([record_leaf(item) for item in hashes])
                index = list(hashes).index(wanted)
                return RecordProof(batch, signature, index, tuple(build_proof(tree, index)))
        raise AssertionError("the record stands in no batch")

    def receipt_data(self, call: CallReceipt | None = None) -> dict[str, Any]:
        return {
            "call": to_json(call or self.receipt()),
            "hub": self.world.hub,
            "chainId": CHAIN_ID,
            "staking": STAKING,
        }


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


@pytest.fixture(scope="module")
def verdicts(bench: Bench) -> dict[str, Judgement]:
    """Every case of this file, judged by one Node process."""
    return judge([*_tree_cases(bench), *_receipt_cases(bench), *_signature_cases(bench)])


def changed(data: dict[str, Any], edit: Edit) -> dict[str, Any]:
    copy = deepcopy(data)
    edit(copy)
    return copy


def _tree_cases(bench: Bench) -> list[Case]:
    good = bench.tree_data()
    wallet = next(iter(good["proofs"]))
    other = list(good["proofs"])[1]

    def one_wei_more(data: dict[str, Any]) -> None:
        value = data["dump"]["values"][0]["value"]
        value[1] = str(int(value[1]) + 1)

    def another_wallet(data: dict[str, Any]) -> None:
        data["dump"]["values"][0]["value"][0] = address_of("thief")

    edits: dict[str, Edit] = {
        "tree one wei more": one_wei_more,
        "tree another wallet": another_wallet,
        "tree another root": lambda data: data.update(root="0x" + "11" * 32),
        "tree proofs swapped": lambda data: data["proofs"].update(
            {wallet: good["proofs"][other], other: good["proofs"][wallet]}
        ),
        "tree proof without its end": lambda data: data["proofs"][wallet].pop(),
        "tree without a proof": lambda data: data["proofs"].pop(wallet),
    }
    return [Case("tree", "tree", good), *(Case(n, "tree", changed(good, e)) for n, e in edits.items())]


def _receipt_cases(bench: Bench) -> list[Case]:
    good = bench.receipt_data()
    call = bench.receipt()
    stranger = {
        "signature": hex_hash(sign(bench.world.domain, call.receipt_proof.batch, secret_of("thief")))  # type: ignore[union-attr]
    }

    def set_credits(data: dict[str, Any]) -> None:
        delivery = data["call"]["delivery"]
        delivery["credits_micro"] = str(int(delivery["credits_micro"]) + 1)

    edits: dict[str, Edit] = {
        "receipt one micro more": set_credits,
        "receipt one token more": lambda d: d["call"]["receipt"].update(
            output_tokens=d["call"]["receipt"]["output_tokens"] + 1
        ),
        "receipt signed by a stranger": lambda d: d["call"]["receipt_proof"].update(stranger),
        "receipt of another hub": lambda d: d.update(hub=address_of("another hub")),
        "receipt of another chain": lambda d: d.update(chainId=ANOTHER_CHAIN),
        "receipt of another contract": lambda d: d.update(staking=DISTRIBUTOR),
        "receipt with another path": lambda d: d["call"]["forward_proof"]["siblings"].reverse(),
        "receipt of another forward": lambda d: d["call"]["forward"].update(price_version=2),
        "receipt without the node's": lambda d: d["call"].update(receipt=None),
        "receipt proven as a delivery": lambda d: d["call"].update(
            receipt_proof=deepcopy(d["call"]["delivery_proof"])
        ),
    }
    calls = [
        Case(f"receipt {i}", "receipt", bench.receipt_data(bench.receipt(i)))
        for i in range(len(bench.world.calls))
    ]
    return [*calls, *(Case(n, "receipt", changed(good, e)) for n, e in edits.items())]


def _signed(
    name: str,
    struct: TypedStruct,
    contract: str,
    signer: str,
    named: str | None = None,
    chain: int = CHAIN_ID,
) -> Case:
    signature = sign(Domain(CHAIN_ID, contract), struct, secret_of(signer))  # type: ignore[arg-type]
    return Case(
        name,
        "signed",
        {
            "type": type(struct).__name__,
            "struct": to_json(struct),
            "signature": hex_hash(signature),
            "signer": address_of(named or signer),
            "chainId": chain,
            "contract": contract,
        },
    )


def _signature_cases(bench: Bench) -> list[Case]:
    good = bench.attestation_data()

    def one_wei_more(data: dict[str, Any]) -> None:
        outcome = data["attestation"]["round_root"]
        outcome["cumulative_wei"] = str(int(outcome["cumulative_wei"]) + 1)

    wallet = address_of("wallet of node-1")
    binding = Binding(address_of("node-1"), wallet, 1, 1, 2**40)
    extraction = Extraction(wallet, wallet, 7, True, 3, 2**40)
    outcome = bench.closed.round_root
    digests = {
        "chainId": CHAIN_ID,
        "contract": DISTRIBUTOR,
        "type": "RoundRoot",
        "struct": to_json(outcome),
        "digest": hex_hash(digest(Domain(CHAIN_ID, DISTRIBUTOR), outcome)),
    }
    return [
        Case("attestation", "attestation", good),
        Case("attestation one wei more", "attestation", changed(good, one_wei_more)),
        Case("attestation by a stranger", "attestation", bench.attestation_data("thief")),
        Case(
            "attestation for the staking contract",
            "attestation",
            bench.attestation_data(contract=STAKING),
        ),
        Case("attestation of another chain", "attestation", changed(good, lambda d: d.update(chainId=1))),
        Case(
            "attestation without a signature",
            "attestation",
            changed(good, lambda d: d["attestation"].update(signature="0x")),
        ),
        _signed("binding", binding, STAKING, "node-1"),
        _signed("binding by the wallet", binding, STAKING, "wallet of node-1", named="node-1"),
        _signed("extraction", extraction, DISTRIBUTOR, "wallet of node-1"),
        _signed("extraction of another chain", extraction, DISTRIBUTOR, "wallet of node-1", chain=1),
        _signed("seal", bench.closed.seal, STAKING, "hub"),
        _signed(
            "second seal",
            BundleSeal(bench.world.hub, bench.world.round, b"\x11" * 32),
            STAKING,
            "thief",
            named="hub",
        ),
        Case("digest", "digest", digests),
        Case("digest of another chain", "digest", digests | {"chainId": 2}),
    ]


GOOD = ["tree", "attestation", "binding", "extraction", "seal", "digest"]


@pytest.mark.parametrize("name", GOOD)
def test_what_the_network_published_is_accepted(name: str, verdicts: dict[str, Judgement]) -> None:
    assert verdicts[name].ok, verdicts[name].why


def test_every_receipt_of_the_round_is_accepted(bench: Bench, verdicts: dict[str, Judgement]) -> None:
    refused = {
        number: verdicts[f"receipt {number}"].why
        for number in range(len(bench.world.calls))
        if not verdicts[f"receipt {number}"].ok
    }
    assert len(bench.world.calls) > 10
    assert refused == {}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("tree one wei more", "does not contain the expected value"),
        ("tree another wallet", "does not contain the expected value"),
        ("tree another root", "the dump's root is"),
        ("tree proofs swapped", "does not lead to the root"),
        ("tree proof without its end", "does not lead to the root"),
        ("tree without a proof", "a wallet has no proof"),
        ("receipt one micro more", "the delivery does not stand in its batch"),
        ("receipt one token more", "the delivery is of another receipt"),
        ("receipt signed by a stranger", "RecordBatch is signed by"),
        ("receipt of another hub", "the forward is by"),
        ("receipt of another chain", "RecordBatch is signed by"),
        ("receipt of another contract", "RecordBatch is signed by"),
        ("receipt with another path", "the forward does not stand in its batch"),
        ("receipt of another forward", "the delivery is of another forward"),
        ("receipt without the node's", "names a receipt that is not there"),
        ("receipt proven as a delivery", "the batch is one of kind 3"),
        ("attestation one wei more", "RoundRoot is signed by"),
        ("attestation by a stranger", "RoundRoot is signed by"),
        ("attestation for the staking contract", "RoundRoot is signed by"),
        ("attestation of another chain", "RoundRoot is signed by"),
        ("attestation without a signature", "signature"),
        ("binding by the wallet", "Binding is signed by"),
        ("extraction of another chain", "Extraction is signed by"),
        ("second seal", "BundleSeal is signed by"),
        ("digest of another chain", "the digest is 0x"),
    ],
)
def test_what_was_changed_or_forged_is_refused(name: str, why: str, verdicts: dict[str, Judgement]) -> None:
    assert not verdicts[name].ok
    assert why in verdicts[name].why


def test_both_sides_agree_on_the_receipts_own_check(bench: Bench) -> None:
    """What the JavaScript side accepts here, `check_receipt` accepts too, and the other way round."""
    call = bench.receipt()
    forged = edited(call, delivery=edited(call.delivery, credits_micro=call.delivery.credits_micro + 1))
    assert check_receipt(bench.world.domain, bench.world.hub, call).ok
    assert not check_receipt(bench.world.domain, bench.world.hub, forged).ok


def test_package_lock_pins_every_package_and_names_no_registry() -> None:
    lock = json.loads((HERE / "package-lock.json").read_text())
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    assert lock["packages"][""]["dependencies"] == wanted
    for path, package in lock["packages"].items():
        assert "resolved" not in package
        assert not path or package["integrity"].startswith("sha512-")
