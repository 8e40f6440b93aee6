"""What the hub signed is kept, and nothing else."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from emcd.clock import ManualClock
from emcd.errors import RemoteProtocolError
from emcd.keys import SigningKey
from emcd.ledger import Ledger
from emcd.proto.control import ProofMessage
from emcd.proto.eip712 import Domain
from emcd.proto.merkle import build_proof, build_tree, record_leaf
from emcd.proto.records import CallStatus, Delivery, RecordBatch, RecordKind, RecordProof
from emcd.testing import make_key, temporary_ledger
from emcd.types import Address, Hash
from emcd_node import queries
from emcd_node.hub_proofs import MAX_PROOFS, HubProofs
from emcd_node.omission_row import count_states, list_expected
from emcd_node.queries import ReceiptRow
from emcd_node.schema import MIGRATIONS
from tests.support.node_network import DEPLOYMENT, DOMAIN, HUB_KEY, NODE_KEY


@pytest.fixture
async def node_ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"node": MIGRATIONS}) as ledger:
        yield ledger


def _message(
    count: int = 3,
    *,
    key: SigningKey = HUB_KEY,
    domain: Domain = DOMAIN,
    kind: int = RecordKind.FORWARD,
    signer: Address = HUB_KEY.address,
    claimed: int | None = None,
) -> ProofMessage:
    hashes = [secrets.token_bytes(32) for _ in range(count)]
    tree = build_tree([record_leaf(item) for item in hashes])
    batch = RecordBatch(signer, kind, tree[0], count if claimed is None else claimed, 1)
    signature = key.sign(domain, batch)
    proofs = [RecordProof(batch, signature, i, tuple(build_proof(tree, i))) for i in range(count)]
    return ProofMessage(tuple(hashes), tuple(proofs))


def _proofs(ledger: Ledger) -> HubProofs:
    return HubProofs(ledger, NODE_KEY.address, HUB_KEY.address, DOMAIN, DEPLOYMENT.params, ManualClock())


async def _kept(ledger: Ledger, message: ProofMessage) -> list[bytes | None]:
    return await ledger.read(
        lambda con: [queries.find_proof(con, NODE_KEY.address, item) for item in message.record_hashes]
    )


@pytest.mark.parametrize("kind", [RecordKind.FORWARD, RecordKind.DELIVERY])
async def test_take_good_proofs_are_kept_once(node_ledger: Ledger, kind: RecordKind) -> None:
    proofs, message = _proofs(node_ledger), _message(kind=kind)
    await proofs.take(message)
    await proofs.take(message)
    kept = await _kept(node_ledger, message)
    assert [msgspec.msgpack.decode(item or b"", type=RecordProof) for item in kept] == list(message.proofs)


async def test_take_nothing_is_fine(node_ledger: Ledger) -> None:
    await _proofs(node_ledger).take(ProofMessage((), ()))


_OTHER_CHAIN = Domain(1, DOMAIN.verifying_contract)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (_message(key=make_key("other")), "EMC-1495"),
        (_message(domain=_OTHER_CHAIN), "EMC-1495"),
        (_message(key=make_key("other"), signer=make_key("other").address), "EMC-1496"),
        (_message(kind=RecordKind.RECEIPT), "EMC-1496"),
        (_message(kind=9), "EMC-1496"),
        (_message(kind=0), "EMC-1496"),
        (_message(claimed=257), "EMC-1496"),
        (_message(claimed=0), "EMC-1496"),
    ],
)
async def test_take_batch_not_signed_by_the_hub_is_refused(
    node_ledger: Ledger, message: ProofMessage, code: str
) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        await _proofs(node_ledger).take(message)
    assert caught.value.code == code
    assert set(await _kept(node_ledger, message)) == {None}


async def test_take_record_outside_the_batch_spoils_the_message(node_ledger: Ledger) -> None:
    good = _message()
    for bad in (
        ProofMessage((*good.record_hashes[:2], bytes(32)), good.proofs),
        ProofMessage((*good.record_hashes[:2], b"short"), good.proofs),
        ProofMessage(good.record_hashes[::-1], good.proofs),
        ProofMessage(good.record_hashes[:2], good.proofs),
        ProofMessage((bytes(32),) * (MAX_PROOFS + 1), good.proofs[:1] * (MAX_PROOFS + 1)),
    ):
        with pytest.raises(RemoteProtocolError):
            await _proofs(node_ledger).take(bad)
    assert set(await _kept(node_ledger, good)) == {None}


@pytest.mark.parametrize("signature", [b"", bytes(65), b"x" * 64])
async def test_take_garbage_signature_is_refused(node_ledger: Ledger, signature: bytes) -> None:
    good = _message(1)
    bad = ProofMessage(good.record_hashes, (msgspec.structs.replace(good.proofs[0], signature=signature),))
    proofs = _proofs(node_ledger)
    await proofs.take(good)  # a batch that was found good once is not good under another signature
    with pytest.raises(RemoteProtocolError) as caught:
        await proofs.take(bad)
    assert caught.value.code == "EMC-1494"


async def test_take_sibling_of_wrong_length_is_refused(node_ledger: Ledger) -> None:
    good = _message(2)
    bad = msgspec.structs.replace(good.proofs[0], siblings=(b"x" * 64,))
    with pytest.raises(RemoteProtocolError) as caught:
        await _proofs(node_ledger).take(ProofMessage(good.record_hashes[:1], (bad,)))
    assert caught.value.code == "EMC-1496"


def _delivered(count: int = 2, **changes: Any) -> ProofMessage:
    """Deliveries with their proofs, as an honest hub sends them."""
    deliveries = tuple(
        msgspec.structs.replace(
            Delivery(secrets.token_bytes(32), secrets.token_bytes(32), bytes(32), 0, 9, 7, 3, 99), **changes
        )
        for _ in range(count)
    )
    hashes = [item.struct_hash() for item in deliveries]
    tree = build_tree([record_leaf(item) for item in hashes])
    batch = RecordBatch(HUB_KEY.address, RecordKind.DELIVERY, tree[0], count, 1)
    signature = HUB_KEY.sign(DOMAIN, batch)
    proofs = [RecordProof(batch, signature, i, tuple(build_proof(tree, i))) for i in range(count)]
    return ProofMessage(tuple(hashes), tuple(proofs), deliveries)


async def _states(ledger: Ledger) -> dict[str, int]:
    counts = await ledger.read(lambda con: count_states(con, NODE_KEY.address))
    return {state.value: count for state, count in counts.items()}


async def _give(ledger: Ledger, delivery: Delivery, call_id: bytes = b"c" * 16) -> None:
    """This node has given the receipt that a delivery names."""
    row = ReceiptRow(
        NODE_KEY.address, call_id, Hash(delivery.forward_hash), Hash(delivery.receipt_hash), b"", b"", 3
    )
    await ledger.write(lambda con: queries.insert_receipts(con, [row]))


async def test_take_deliveries_expects_calls_that_this_node_gave_a_receipt_for(node_ledger: Ledger) -> None:
    proofs, message = _proofs(node_ledger), _delivered(3)
    await _give(node_ledger, message.deliveries[0])
    for _ in range(2):
        await proofs.take(message)
    assert await _states(node_ledger) == {"expected": 1, "unpaid": 2}
    [call] = await node_ledger.read(lambda con: list_expected(con, NODE_KEY.address, 3))
    assert (call.call_id, call.round, call.vault_micro) == (b"c" * 16, 3, 7)


@pytest.mark.parametrize("changes", [{"status": int(CallStatus.NODE_ERROR)}, {"receipt_hash": bytes(32)}])
async def test_take_delivery_of_a_call_that_earns_nothing_expects_nothing(
    node_ledger: Ledger, changes: dict[str, Any]
) -> None:
    message = _delivered(1, **changes)
    await _give(node_ledger, message.deliveries[0])
    await _proofs(node_ledger).take(message)
    assert await _states(node_ledger) == {"unpaid": 1}


def _swapped(message: ProofMessage) -> ProofMessage:
    return ProofMessage(message.record_hashes, message.proofs, message.deliveries[::-1])


@pytest.mark.parametrize(
    "message",
    [
        _swapped(_delivered()),
        ProofMessage(*(getattr(_delivered(), name) for name in ("record_hashes", "proofs")), (_delivered(1).deliveries[0],)),
        _delivered(1, status=9),
        _delivered(1, vault_micro=2**63),
        _delivered(1, round=2**63),
        ProofMessage(_message(1).record_hashes, _message(1).proofs, _delivered(1).deliveries),
    ],
)  # fmt: skip
async def test_take_delivery_that_the_hub_did_not_sign_so_keeps_nothing(
    node_ledger: Ledger, message: ProofMessage
) -> None:
    with pytest.raises(RemoteProtocolError):
        await _proofs(node_ledger).take(message)
    assert await _states(node_ledger) == {}
    assert await _kept(node_ledger, message) == [None] * len(message.record_hashes)
