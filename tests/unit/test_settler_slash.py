"""What the settler makes of validators' orders: what counts, when it is enough, what is chosen once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from emcd.errors import RemoteProtocolError
from emcd.keys import SigningKey
from emcd.ledger import Ledger
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.json_form import to_json
from emcd.proto.messages import RoundRoot, Slash
from emcd.testing import make_key, temporary_ledger
from emcd_settler.attestation import Attestation
from emcd_settler.role import SPEC
from emcd_settler.round_row import add_attestations, list_double_attestations
from emcd_settler.slash_row import (
    SlashState,
    choose_slash,
    find_slash,
    list_open_slashes,
    prune_slashes,
    set_slash_state,
)
from emcd_settler.slash_rule import OrderQuorum, SignedSlash, list_quorums, read_slashes

STAKING = Domain(31337, make_key("staking").address)
KEYS = [make_key(f"v{n}") for n in range(4)]
HUB = make_key("hub").address
ORDER = Slash(HUB, 5_000, keccak(b"deed"), 3)
POWERS = {key.address: 10 for key in KEYS}


def page(*orders: Slash, key: SigningKey = KEYS[0], domain: Domain = STAKING) -> bytes:
    items = [{"slash": to_json(order), "signature": "0x" + key.sign(domain, order).hex()} for order in orders]
    return msgspec.json.encode({"slashes": items})


def signed(key: SigningKey, order: Slash = ORDER) -> SignedSlash:
    return SignedSlash(key.address, order, key.sign(STAKING, order))


def replaced(**changes: Any) -> Slash:
    return msgspec.structs.replace(ORDER, **changes)


REFUSED = {
    "no JSON": b"{",
    "no page": b"[]",
    "deep": b"[" * 9_000,
    "no text": b"\xff\xfe",
    "another key's": page(ORDER, key=KEYS[1]),
    "another chain's": page(ORDER, domain=Domain(1, STAKING.verifying_contract)),
    "another contract's": page(ORDER, domain=Domain(31337, HUB)),
    "another epoch's": page(replaced(epoch=4)),
    "all of the stake": page(replaced(bps=10_000)),
    "nothing of the stake": page(replaced(bps=0)),
    "half good": page(ORDER, replaced(epoch=2)),
    "no signature": page(ORDER).replace(KEYS[0].sign(STAKING, ORDER).hex().encode(), b""),
    "no hex": page(ORDER).replace(KEYS[0].sign(STAKING, ORDER).hex().encode(), b"zz"),
    "too many": msgspec.json.encode({"slashes": [{"slash": {}, "signature": ""}] * 8_193}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_slashes_page_that_is_not_the_validators_own_is_refused(name: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        read_slashes(STAKING, REFUSED[name], 3, KEYS[0].address)
    assert caught.value.code == "EMC-1975"


def test_slashes_page_is_read_and_known_orders_are_not_checked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = read_slashes(STAKING, page(ORDER), 3, KEYS[0].address)
    assert first == [signed(KEYS[0])]
    monkeypatch.setattr("emcd_settler.slash_rule.require_signer", None)
    assert read_slashes(STAKING, page(ORDER), 3, KEYS[0].address, known=first) == first


def test_order_needs_more_than_two_thirds_of_all_power() -> None:
    assert list_quorums(POWERS, [signed(key) for key in KEYS[:2]]) == []
    powers = {KEYS[0].address: 20, KEYS[1].address: 10}
    assert list_quorums(powers, [signed(KEYS[0])]) == []  # exactly two thirds
    (found,) = list_quorums(POWERS, [signed(key) for key in KEYS[:3]])
    assert found.order == ORDER
    assert set(found.signatures) == {key.address for key in KEYS[:3]}


def test_order_of_strangers_twice_or_of_another_share_makes_no_quorum() -> None:
    stranger = signed(make_key("stranger"))
    assert list_quorums(POWERS, [signed(KEYS[0])] * 3 + [stranger]) == []
    other = [signed(key, replaced(bps=100)) for key in KEYS[1:]]
    (found,) = list_quorums(POWERS, [signed(KEYS[0]), *other])
    assert found.order.bps == 100
    assert list_quorums(POWERS, [signed(KEYS[0]), signed(KEYS[1]), *other[1:]]) == []


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"settler": SPEC.migrations}) as opened:
        yield opened


def quorum(order: Slash = ORDER) -> OrderQuorum:
    return OrderQuorum(order, {key.address: key.sign(STAKING, order) for key in KEYS[:3]})


async def test_order_is_chosen_once_and_anew_only_when_its_transaction_came_to_nothing(
    ledger: Ledger,
) -> None:
    later = quorum(replaced(epoch=4))
    identity = ORDER.evidence_hash
    assert await ledger.write(lambda con: choose_slash(con, "s", quorum(), 1))
    assert not await ledger.write(lambda con: choose_slash(con, "s", later, 2))
    row = await ledger.read(lambda con: find_slash(con, "s", identity))
    assert row is not None
    assert (row.quorum, row.state, row.attempt) == (quorum(), SlashState.CHOSEN, 0)
    await ledger.write(
        lambda con: set_slash_state(con, "s", identity, SlashState.AGAIN, 3, reason="WrongEpoch", attempt=1)
    )
    assert await ledger.read(lambda con: list_open_slashes(con, "s")) == []
    assert await ledger.write(lambda con: choose_slash(con, "s", later, 4))
    (row,) = await ledger.read(lambda con: list_open_slashes(con, "s"))
    assert (row.quorum, row.attempt) == (later, 1)
    for state in (SlashState.CONFIRMED, SlashState.ENDED):
        await ledger.write(lambda con, to=state: set_slash_state(con, "s", identity, to, 5))  # type: ignore[misc]
        assert not await ledger.write(lambda con: choose_slash(con, "s", quorum(), 6))


async def test_orders_under_way_are_never_forgotten(ledger: Ledger) -> None:
    await ledger.write(lambda con: choose_slash(con, "s", quorum(), 1))
    await ledger.write(lambda con: prune_slashes(con, "s", 99))
    assert len(await ledger.read(lambda con: list_open_slashes(con, "s"))) == 1
    await ledger.write(lambda con: set_slash_state(con, "s", ORDER.evidence_hash, SlashState.CONFIRMED, 2))
    await ledger.write(lambda con: prune_slashes(con, "s", 99))
    assert await ledger.read(lambda con: find_slash(con, "s", ORDER.evidence_hash)) is None


async def test_double_attestations_are_those_of_one_round_and_validator(ledger: Ledger) -> None:
    a, b = keccak(b"a"), keccak(b"b")

    def attested(who: int, index: int, bundle: bytes) -> Attestation:
        return Attestation(KEYS[who].address, RoundRoot(index, bundle, a, 1), bytes(65))

    held = [attested(0, 5, a), attested(1, 5, b), attested(0, 6, b), attested(2, 7, a), attested(2, 7, b)]
    held += [attested(3, 2, a), attested(3, 2, b)]
    await ledger.write(lambda con: add_attestations(con, "s", [*held, *held]))
    found = await ledger.read(lambda con: list_double_attestations(con, "s", 3))
    assert [(one.validator, one.root.round) for one, _ in found] == [(KEYS[2].address, 7)]
    assert {item.root.bundle_hash for item in found[0]} == {a, b}
