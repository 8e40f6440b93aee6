"""Rounds closed from a ledger: in a thread or a process of its own, with crashes between the steps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from emcd.accounting.audit import audit_bundle
from emcd.bundle_file import audit_file
from emcd.errors import FatalError, RecoverableError
from emcd.ledger import Connection, sign_once
from emcd.proto.bundle import CallEntry
from emcd.proto.bundle_codec import decode_bundle
from emcd.proto.parameter_schedule import ParameterSchedule, ParameterVersion
from emcd.proto.parameters import ParameterSet
from emcd.proto.records import RecordKind
from emcd_hub.billing.queries import vault_account
from emcd_hub.records.batch_row import find_batch, find_batch_id
from emcd_hub.records.unsigned import find_unsigned
from emcd_hub.rounds import closer as closer_module
from emcd_hub.rounds import settle_input
from emcd_hub.rounds.bundle_row import Base
from emcd_hub.rounds.chain_row import Bought, credit_deposit, undo_above
from emcd_hub.rounds.view import fetch_view
from tests.support.hub_ledger import NODES, FilledHub, filled_hub
from tests.support.hub_world import HUB_KEY


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[FilledHub]:
    async with filled_hub(tmp_path) as made:
        yield made


async def calls_of(hub: FilledHub, index: int) -> dict[bytes, CallEntry]:
    """By call id, of a bundle that passes its audit."""
    data = await hub.read_bundle(index)
    outcome = audit_bundle(data)
    assert outcome.ok, outcome.difference
    return {call.forward.call_id: call for call in decode_bundle(data).calls}


async def test_round_closes_into_a_file_that_the_ledger_names(hub: FilledHub, tmp_path: Path) -> None:
    ids = await hub.add_calls(0, 20)
    await hub.add_calls(1, 3)

    facts = await hub.close(0)

    calls = await calls_of(hub, 0)
    assert sorted(calls) == sorted(ids)
    assert all(None not in (c.forward_ref, c.receipt_ref, c.delivery_ref) for c in calls.values())
    name = f"bundles/0-{facts.bundle_hash[:4].hex()}.emcb"
    assert [row[0] for row in await hub.rows("SELECT path FROM ledger_files")] == [name]
    assert (tmp_path / name).is_file()
    assert facts.seal is not None


async def test_round_is_the_same_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = []
    for name, small in (("thread", 1 << 30), ("process", 0)):
        monkeypatch.setattr(closer_module, "SMALL_CALLS", small)
        (tmp_path / name).mkdir()
        async with filled_hub(tmp_path / name) as hub:
            await hub.add_calls(0, 30)
            await hub.add_calls(0, 5, node=NODES[1], batched=False)
            hashes.append((await hub.close(0)).bundle_hash)
            assert await hub.count("hub_carried_calls") == 5

    assert hashes[0] == hashes[1]


async def test_call_without_its_nodes_batch_waits_and_comes_with_it(hub: FilledHub) -> None:
    (waiting,) = await hub.add_calls(0, 1, batched=False)
    (other,) = await hub.add_calls(0, 1)
    await hub.close(0)
    assert list(await calls_of(hub, 0)) == [other]

    at_ms = hub.params.round_end_ms(0) + 5000
    await hub.add_batch(NODES[0], RecordKind.RECEIPT, [await hub.receipt_hash(waiting)], at_ms, late=True)
    await hub.close(1)

    call = (await calls_of(hub, 1))[waiting]
    assert None not in (call.forward_ref, call.receipt_ref, call.delivery_ref)


async def test_call_waits_no_longer_than_it_may_be_carried(hub: FilledHub) -> None:
    (waiting,) = await hub.add_calls(0, 1, batched=False)
    for index in range(3):
        await hub.close(index)

    call = (await calls_of(hub, 2))[waiting]
    assert call.receipt_ref is None
    assert await hub.count("hub_carried_calls") == 0


async def test_stranger_that_signs_a_receipt_takes_no_time_from_its_node(hub: FilledHub) -> None:
    (waiting,) = await hub.add_calls(0, 1, batched=False)
    hashes = [await hub.receipt_hash(waiting)]
    await hub.add_batch(NODES[1], RecordKind.RECEIPT, hashes, hub.params.round_start_ms(0) + 900)

    await hub.close(0)

    assert await calls_of(hub, 0) == {}
    assert await hub.count("hub_carried_calls") == 1


async def test_stranger_that_signs_a_receipt_late_does_not_hide_its_nodes_late_batch(hub: FilledHub) -> None:
    (call,) = await hub.add_calls(0, 1, batched=False)
    receipt, at_ms = await hub.receipt_hash(call), hub.params.round_start_ms(0)
    await hub.add_batch(NODES[1], RecordKind.RECEIPT, [b"\7" * 32, receipt], at_ms + 200_000, late=True)
    await hub.add_batch(NODES[0], RecordKind.RECEIPT, [receipt], at_ms + 300_000, late=True)

    place = (NODES[0].address, RecordKind.RECEIPT, receipt, at_ms)
    found = await hub.ledger.read(lambda con: find_batch(con, *place))
    assert found is not None
    assert found[0].batch.signer == NODES[0].address
    assert await hub.ledger.read(lambda con: find_batch_id(con, *place)) is not None


async def test_purchase_undone_before_its_bundle_and_seen_after_it_is_listed_once(hub: FilledHub) -> None:
    bought = Bought(0, vault_account(hub.accounts[0]), "0x" + "11" * 20, 10, 5, 7, b"\1" * 32)
    await hub.ledger.write(lambda con: credit_deposit(con, bought, 0, 1))
    await hub.ledger.write(lambda con: undo_above(con, 6, 2))
    await hub.publish(await hub.close(0))
    for index, again in ((2, 3), (4, 5)):  # undone again once it was listed, and seen again
        await hub.ledger.write(partial(credit_deposit, item=bought, index=index, at_ms=again))
        for number in (index - 1, index):
            await hub.publish(await hub.close(number))
        await hub.ledger.write(lambda con: undo_above(con, 6, 9))

    listed = [decode_bundle(await hub.read_bundle(index)).deposits for index in range(5)]
    assert [len(entries) for entries in listed] == [0, 0, 1, 0, 0]


async def test_call_of_many_hours_goes_by_the_prices_of_its_beginning(hub: FilledHub) -> None:
    old, params = hub.chain.deployment.prices, hub.params
    new = msgspec.structs.replace(old, version=old.version + 1)
    changed = 100 * params.epoch_rounds
    first = ParameterVersion(1, 0, ParameterSet(params, old))
    second = ParameterVersion(2, 100, ParameterSet(params, new))
    hub.closer._parameters.schedule = ParameterSchedule((first, second))  # type: ignore[misc]
    hub.set_round(changed + 602)
    view = await fetch_view(hub.chain, changed + 600, params)  # type: ignore[arg-type]

    facts = hub.closer._facts(view, Base())

    assert facts.prices_from == (0, changed), "a call of ten hours began before the new prices"


async def test_consolidated_batch_takes_the_place_of_small_ones(hub: FilledHub) -> None:
    ids = [(await hub.add_calls(0, 1))[0] for _ in range(12)]
    hashes = [await hub.receipt_hash(call_id) for call_id in ids]
    await hub.close(0)
    apart = decode_bundle(await hub.read_bundle(0)).batches
    assert sum(item.kind == RecordKind.RECEIPT for item in apart) == 12

    ids = [(await hub.add_calls(1, 1))[0] for _ in range(12)]
    hashes = [await hub.receipt_hash(call_id) for call_id in ids]
    await hub.add_batch(NODES[0], RecordKind.RECEIPT, hashes, hub.params.round_end_ms(1) + 9000)
    await hub.close(1)

    together = decode_bundle(await hub.read_bundle(1)).batches
    assert [item.count for item in together if item.kind == RecordKind.RECEIPT] == [12]
    assert all(call.receipt_ref is not None for call in (await calls_of(hub, 1)).values())


async def test_calls_of_a_void_round_go_into_the_next_with_their_proofs(
    hub: FilledHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few are looked up one by one, many are scanned: both find every batch."""
    monkeypatch.setattr(settle_input, "LONG_CALL_MS", 1000)
    for index, few in ((0, 200), (4, 2)):
        monkeypatch.setattr(settle_input, "FEW_CALLS", few)
        ids = await hub.add_calls(index, 5)
        own = await hub.add_calls(index + 1, 3)
        await hub.publish(await hub.close(index), void=True)
        await hub.publish(await hub.close(index + 1))

        calls = await calls_of(hub, index + 1)
        assert sorted(calls) == sorted(ids + own)
        assert all(None not in (c.forward_ref, c.receipt_ref, c.delivery_ref) for c in calls.values())


async def test_hub_batch_signed_long_after_its_records_is_found(hub: FilledHub) -> None:
    """After a crash the hub signs at its next start what it had not signed."""
    await hub.add_calls(0, 3)
    deleted = ("DELETE FROM hub_batches WHERE signer = ?", (HUB_KEY.address,))
    rows = await hub.rows("SELECT kind, record_hashes FROM hub_batches WHERE signer = ?", HUB_KEY.address)
    await hub.ledger.write(lambda con: con.execute(*deleted) and None)
    for kind, joined in rows:
        hashes = [joined[i : i + 32] for i in range(0, len(joined), 32)]
        late_ms = hub.params.round_end_ms(0) + 125_000
        await hub.add_batch(HUB_KEY, RecordKind(kind), hashes, late_ms, late=True)

    await hub.close(0)

    calls = await calls_of(hub, 0)
    assert len(calls) == 3
    assert all(None not in (c.forward_ref, c.delivery_ref) for c in calls.values())


@pytest.mark.parametrize("small", [1 << 30, 0])
async def test_crash_before_the_ledger_knows_leaves_waste_and_the_round_closes_again(
    hub: FilledHub, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(closer_module, "SMALL_CALLS", small)
    await hub.add_calls(0, 3)

    async def die(*_: object) -> None:
        raise RecoverableError("EMC-1034", "a crash")

    with monkeypatch.context() as crash:
        crash.setattr(hub.closer, "_keep", die)
        with pytest.raises(RecoverableError):
            await hub.close(0)
    assert await hub.count("hub_bundles") == await hub.count("sign_once") == 0
    assert len(list(hub.folder.path.glob("0-*.emcb"))) == 1

    await hub.add_calls(0, 1)  # a record that came late: the bundle is another one now
    facts = await hub.close(0)

    assert facts.calls == 4
    assert len(await calls_of(hub, 0)) == 4
    assert await hub.count("sign_once") == 1


async def test_unfinished_files_are_swept_at_the_start(hub: FilledHub) -> None:
    left = hub.folder.path / "7-abc.partial"
    left.write_bytes(b"half a bundle")
    kept = hub.folder.path / "7-00000000.emcb"
    kept.write_bytes(b"what no row names")

    await hub.closer.prepare()

    assert not left.exists()
    assert kept.exists()


async def test_failed_building_leaves_no_file(hub: FilledHub, monkeypatch: pytest.MonkeyPatch) -> None:
    await hub.add_calls(0, 3)

    def fail(*_: object) -> list[object]:
        raise RecoverableError("EMC-1207", "the disk is slow")

    monkeypatch.setattr(settle_input, "list_votes", fail)
    with pytest.raises(RecoverableError):
        await hub.close(0)

    assert list(hub.folder.path.iterdir()) == []


async def test_second_hash_of_a_round_stops_the_hub(hub: FilledHub) -> None:
    def sign(con: Connection) -> None:
        sign_once(con, HUB_KEY.address, "bundle_seal", "0", bytes(32))

    await hub.ledger.write(sign)

    with pytest.raises(FatalError) as caught:
        await hub.close(0)

    assert caught.value.code == "EMC-1752"
    assert await hub.count("hub_bundles") == await hub.count("ledger_files") == 0


async def test_closed_round_is_not_built_again(hub: FilledHub) -> None:
    first = await hub.close(0)
    await hub.add_calls(0, 1)

    assert await hub.close(0) == first


async def test_missing_file_of_a_void_round_delays_the_next(hub: FilledHub) -> None:
    await hub.add_calls(0, 1)
    await hub.publish(await hub.close(0), void=True)
    for file in hub.folder.path.iterdir():
        file.unlink()

    with pytest.raises(RecoverableError) as caught:
        await hub.close(1)

    assert caught.value.code == "EMC-1755"


async def test_bundle_file_is_audited_where_it_lies(hub: FilledHub) -> None:
    await hub.add_calls(0, 4)
    facts = await hub.close(0)
    (file,) = hub.folder.path.iterdir()

    assert audit_file(file).bundle_hash == facts.bundle_hash


async def test_receipts_owed_are_found_again_at_the_start(hub: FilledHub) -> None:
    """Those of open rounds without a batch of their node's, and those that wait; no others."""
    (waiting,) = await hub.add_calls(0, 1, batched=False)
    await hub.add_calls(0, 2)
    await hub.close(0)
    await hub.add_calls(1, 5)
    owed = await hub.add_calls(1, 2, batched=False)
    (late,) = await hub.add_calls(1, 1, batched=False)
    hashes = [await hub.receipt_hash(call_id) for call_id in (waiting, *owed, late)]
    end_ms = hub.params.round_end_ms(1)
    await hub.add_batch(NODES[0], RecordKind.RECEIPT, [hashes[3]], end_ms + 10**7, late=True)
    await hub.add_batch(NODES[1], RecordKind.RECEIPT, [hashes[1]], end_ms)

    def find(con: Connection, owed_since_ms: int) -> set[bytes]:
        found = find_unsigned(con, HUB_KEY.address, owed_since_ms, hub.params.round_start_ms(1))
        assert found.forwards == found.deliveries == []
        assert all(item.node == NODES[0].address for item in found.receipts)
        return {item.receipt_hash for item in found.receipts}

    assert await hub.ledger.read(lambda con: find(con, 0)) == set(hashes[:3])
    assert await hub.ledger.read(lambda con: find(con, hub.params.round_start_ms(1))) == set(hashes[1:3])
    assert await hub.ledger.read(lambda con: find(con, end_ms)) == set()
