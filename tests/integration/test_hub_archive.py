"""Old rounds leave the ledger: what of them stays, what goes, and that nothing goes too early."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from emcd.accounting.audit import audit_bundle
from emcd.accounting.receipt import check_receipt
from emcd.errors import RecoverableError
from emcd.ledger import IntegrityError
from emcd.proto.bundle_codec import decode_bundle
from emcd.proto.records import RecordKind
from emcd_hub.billing.queries import find_imbalance
from emcd_hub.records.call_row import delete_calls
from emcd_hub.records.proof import find_receipt
from emcd_hub.rounds import archive as archive_module
from emcd_hub.rounds import archivist as archivist_module
from emcd_hub.rounds.bundle_row import BundleFacts, find_base, find_bundle_file
from emcd_hub.rounds.retention import Retention
from emcd_hub.rounds.view import fetch_view
from tests.support.hub_ledger import NODES, ROUND_S, FilledHub, filled_hub
from tests.support.hub_world import DOMAIN, HUB_KEY

PAID_AGE = 5
"""When a paid round of these tests leaves the ledger: two to close it, two to carry its calls, one more."""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archivist_module, "PAUSE_S", 0.0)
    monkeypatch.setattr(archivist_module, "DELETED_AT_ONCE", 3)


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[FilledHub]:
    async with filled_hub(tmp_path) as made:
        yield made


async def play(hub: FilledHub, index: int, calls: int = 4, *, publish: bool = True) -> BundleFacts:
    await hub.add_calls(index, calls)
    await hub.add_calls(index, 2, node=NODES[1], account=1)
    facts = await hub.close(index)
    if publish:
        await hub.publish(facts)
    return facts


async def archive_all(hub: FilledHub) -> int:
    done = 0
    while await hub.archivist.step():
        done += 1
    await hub.archivist.prune()
    return done


async def test_archived_round_leaves_its_bundle_and_takes_its_rows_along(hub: FilledHub) -> None:
    facts = await play(hub, 0)
    before = await hub.read_bundle(0)
    used = await hub.rows("SELECT * FROM hub_usage ORDER BY account_id")
    assert await hub.count("hub_calls") == 6

    await hub.pass_to(PAID_AGE)
    assert await archive_all(hub) == 1

    assert (
        await hub.count("hub_calls") == await hub.count("hub_statuses") == await hub.count("hub_rounds") == 0
    )
    assert await hub.rows("SELECT * FROM hub_usage ORDER BY account_id") == used
    assert await hub.read_bundle(0) == before
    assert audit_bundle(before).bundle_hash == facts.bundle_hash
    file = await hub.ledger.read(lambda con: find_bundle_file(con, 0))
    assert file is not None
    assert file.packed
    assert sorted(path.suffix for path in hub.folder.path.iterdir()) == [".emco", ".emcz"]
    assert sorted(row[0] for row in await hub.rows("SELECT path FROM ledger_files")) == sorted(
        f"bundles/{path.name}" for path in hub.folder.path.iterdir()
    )
    assert await hub.ledger.read(find_imbalance) is None


@pytest.mark.parametrize(
    ("publish", "age", "archived"),
    [(True, PAID_AGE - 1, 0), (True, PAID_AGE, 1), (False, PAID_AGE + 2, 0), (False, PAID_AGE + 3, 1)],
)
async def test_round_stays_as_long_as_its_calls_may_be_needed(
    hub: FilledHub, publish: bool, age: int, archived: int
) -> None:
    await play(hub, 0, publish=publish)
    await hub.pass_to(age)

    assert await archive_all(hub) == archived
    assert await hub.count("hub_calls") == (0 if archived else 6)


async def test_round_paid_by_a_later_publication_is_archived_as_paid(hub: FilledHub) -> None:
    await play(hub, 0, publish=False)
    await play(hub, 1)
    await hub.pass_to(PAID_AGE)

    assert await archive_all(hub) == 1


async def test_receipt_of_an_archived_call_is_found_with_its_proofs(hub: FilledHub) -> None:
    ids = await hub.add_calls(0, 9)
    await hub.publish(await hub.close(0))
    await hub.pass_to(PAID_AGE)
    assert await hub.find_receipt(ids[3]) is None
    await archive_all(hub)

    for call_id in ids:
        found = await hub.find_receipt(call_id)
        assert found is not None
        assert found.forward.call_id == call_id
        assert check_receipt(DOMAIN, HUB_KEY.address, found).counts


async def test_receipt_of_an_archived_call_is_nobody_elses(hub: FilledHub) -> None:
    (call_id,) = await hub.add_calls(0, 1)
    await hub.publish(await hub.close(0))
    await hub.pass_to(PAID_AGE)
    await archive_all(hub)

    assert await hub.find_receipt(call_id, account=1) is None
    assert await hub.find_receipt(bytes(16)) is None
    assert await hub.find_receipt(call_id[:-1] + bytes([call_id[-1] ^ 1])) is None


async def test_receipt_is_found_again_after_a_void_round_carried_its_call(hub: FilledHub) -> None:
    (call_id,) = await hub.add_calls(0, 1)
    await hub.publish(await hub.close(0), void=True)
    await hub.publish(await hub.close(1))
    await hub.pass_to(20)
    assert await archive_all(hub) == 2

    found = await hub.find_receipt(call_id)

    assert found is not None
    assert check_receipt(DOMAIN, HUB_KEY.address, found).ok


async def test_whose_calls_they_were_is_forgotten_after_its_time(tmp_path: Path) -> None:
    terms = Retention(calls_ms=10 * ROUND_S * 1000)
    async with filled_hub(tmp_path, terms) as hub:
        (call_id,) = await hub.add_calls(0, 1)
        await hub.publish(await hub.close(0))
        await hub.pass_to(9)
        await archive_all(hub)
        assert await hub.find_receipt(call_id) is not None

        await hub.pass_to(11)
        await archive_all(hub)

        assert await hub.find_receipt(call_id) is None
        assert [path.suffix for path in hub.folder.path.iterdir()] == [".emcz"]
        assert audit_bundle(await hub.read_bundle(0)).ok


async def test_bundles_are_kept_for_ever_or_as_long_as_asked(tmp_path: Path) -> None:
    async with filled_hub(tmp_path, Retention(calls_ms=0, bundles_rounds=8)) as hub:
        for index in range(3):
            await play(hub, index)
        await hub.pass_to(9)
        await archive_all(hub)

        rows = await hub.rows("SELECT round FROM hub_bundle_files ORDER BY round")
        assert [row[0] for row in rows] == [1, 2]
        assert await hub.count("hub_bundles", "round < 3") == 3


async def test_results_and_totals_go_when_nothing_builds_on_them(tmp_path: Path) -> None:
    async with filled_hub(tmp_path, Retention(results_ms=7 * ROUND_S * 1000)) as hub:
        for index in range(3):
            await play(hub, index)
        await hub.pass_to(8)
        await archive_all(hub)

        assert await hub.rows("SELECT DISTINCT round FROM hub_results ORDER BY round") == [(1,), (2,)]
        base = await hub.ledger.read(lambda con: find_base(con, 2))
        assert base is not None
        assert base.round == 2
        gone = await hub.rows("SELECT round FROM hub_bundles WHERE totals_after = x'90' ORDER BY round")
        assert (0,) in gone


async def test_call_of_a_round_that_is_not_archived_can_not_be_deleted(hub: FilledHub) -> None:
    await hub.add_calls(0, 1)
    seqs = [row[0] for row in await hub.rows("SELECT call_seq FROM hub_calls")]

    with pytest.raises(IntegrityError, match="archived"):
        await hub.ledger.write(lambda con: delete_calls(con, seqs))

    assert await hub.count("hub_calls") == 1


async def test_call_that_no_bundle_holds_stays(hub: FilledHub) -> None:
    await play(hub, 0)
    (late,) = await hub.add_calls(0, 1)  # it came after the round was closed
    await hub.pass_to(PAID_AGE)
    await archive_all(hub)

    assert await hub.rows("SELECT call_id FROM hub_calls") == [(late,)]


@pytest.mark.parametrize("how", ["a damaged one", "a sound one of other calls"])
async def test_other_bytes_than_the_sealed_are_not_archived_and_the_calls_stay(
    hub: FilledHub, tmp_path: Path, how: str
) -> None:
    await play(hub, 0)
    (file,) = hub.folder.path.iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if how == "a sound one of other calls":
        (tmp_path / "other").mkdir()
        async with filled_hub(tmp_path / "other") as another:
            await play(another, 0, calls=5)
            data = bytearray(await another.read_bundle(0))
    file.write_bytes(data)
    await hub.pass_to(PAID_AGE)

    with pytest.raises(RecoverableError) as caught:
        await hub.archivist.step()

    assert caught.value.code == "EMC-1756"
    assert await hub.count("hub_calls") == 6
    assert await hub.count("hub_archived_rounds") == 0
    assert list(hub.folder.path.iterdir()) == [file]


async def test_round_without_a_file_is_passed_over_and_keeps_its_calls(hub: FilledHub) -> None:
    await play(hub, 0)
    await play(hub, 1)
    await hub.ledger.write(lambda con: con.execute("DELETE FROM hub_bundle_files WHERE round = 0") and None)
    await hub.pass_to(PAID_AGE + 1)

    assert await archive_all(hub) == 2
    assert await hub.rows("SELECT DISTINCT round FROM hub_calls") == [(0,)]


@pytest.mark.parametrize("writes", range(6))
async def test_crash_at_any_write_is_gone_on_from(hub: FilledHub, writes: int) -> None:
    ids = await hub.add_calls(0, 7)
    await hub.publish(await hub.close(0))
    before = await hub.read_bundle(0)
    await hub.pass_to(PAID_AGE)

    class CrashError(Exception):
        pass

    class Dying:
        path = hub.ledger.path
        read = hub.ledger.read
        left = writes

        async def write(self, fn: object) -> object:
            self.left -= 1
            if self.left < 0:
                raise CrashError
            return await hub.ledger.write(fn)  # type: ignore[arg-type]

    living, hub.archivist._ledger = hub.archivist._ledger, Dying()  # type: ignore[assignment]
    with pytest.raises(CrashError):
        await archive_all(hub)
    hub.archivist._ledger = living

    await archive_all(hub)

    assert await hub.count("hub_calls") == 0
    assert await hub.read_bundle(0) == before
    assert await hub.find_receipt(ids[0]) is not None


async def test_batches_go_some_time_after_their_round(
    hub: FilledHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archivist_module, "BATCH_MARGIN_MS", 0)
    for index in range(3):
        await play(hub, index)
    batches = await hub.count("hub_batches")
    await hub.pass_to(PAID_AGE + 1)
    await archive_all(hub)

    assert await hub.count("hub_batches") == batches * 2 // 3, "those of the round before stay for long calls"
    oldest = (await hub.rows("SELECT min(received_at_ms) FROM hub_batches"))[0][0]
    assert oldest >= hub.params.round_start_ms(1)


async def test_nothing_is_archived_by_the_clock_while_rounds_are_still_to_be_closed(
    hub: FilledHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archivist_module, "BATCH_MARGIN_MS", 0)
    await play(hub, 0)
    (late,) = await hub.add_calls(1, 1, batched=False)
    await hub.publish(await hub.close(1))
    await play(hub, 2)
    hub.set_round(9)  # the chain was away: 3 and those after it are still to be closed
    await archive_all(hub)
    assert await hub.count("hub_archived_rounds") == 0

    receipt = await hub.receipt_hash(late)
    await hub.add_batch(NODES[0], RecordKind.RECEIPT, [receipt], hub.params.round_start_ms(9), late=True)
    view = await fetch_view(hub.chain, 3, hub.params)  # type: ignore[arg-type]
    await hub.closer.close(view)

    (call,) = decode_bundle(await hub.read_bundle(3)).calls
    assert call.forward.call_id == late
    assert None not in (call.forward_ref, call.receipt_ref, call.delivery_ref)


async def test_batches_of_a_call_stay_until_the_bundle_that_carried_it_is_archived(
    hub: FilledHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archivist_module, "BATCH_MARGIN_MS", 0)
    (late,) = await hub.add_calls(0, 1, batched=False)
    await hub.publish(await hub.close(0))
    await play(hub, 1)
    receipt = await hub.receipt_hash(late)
    await hub.add_batch(NODES[0], RecordKind.RECEIPT, [receipt], hub.params.round_start_ms(2), late=True)
    for index in (2, 3, 4):
        await play(hub, index)
    await hub.pass_to(PAID_AGE + 1)  # 0 and 1 are archived; 2, which holds the call, is not
    await archive_all(hub)
    assert [row[0] for row in await hub.rows("SELECT max(round) FROM hub_archived_rounds")] == [1]

    found = await hub.ledger.read(lambda con: find_receipt(con, HUB_KEY.address, late))
    assert isinstance(found, tuple)


async def test_call_in_no_bundle_does_not_keep_the_batches_of_all_later_ones(
    hub: FilledHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archivist_module, "BATCH_MARGIN_MS", 0)
    await play(hub, 0)
    await hub.add_calls(0, 1)  # it came after the round was closed
    for index in (1, 2, 3, 4):
        await play(hub, index)
    await hub.pass_to(PAID_AGE + 3)
    await archive_all(hub)

    assert (await hub.rows("SELECT min(received_at_ms) FROM hub_batches"))[0][0] >= hub.params.round_start_ms(
        3
    )


async def test_archive_of_many_calls_reads_all_portions(
    hub: FilledHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "_PORTION", 16 * 4)
    ids = await hub.add_calls(0, 11)
    await hub.publish(await hub.close(0))
    await hub.pass_to(PAID_AGE)
    await archive_all(hub)

    assert await hub.count("hub_calls") == 0
    assert all([await hub.find_receipt(call_id) for call_id in ids])


async def test_ledger_under_steady_load_stops_growing(
    hub: FilledHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round's calls are ten times what stays of a round."""
    monkeypatch.setattr(archivist_module, "BATCH_MARGIN_MS", 0)
    monkeypatch.setattr(archivist_module, "DELETED_AT_ONCE", 256)
    pages = []
    for index in range(24):
        await hub.add_calls(index, 40)
        await hub.publish(await hub.close(index))
        await archive_all(hub)
        pages.append((await hub.rows("PRAGMA page_count"))[0][0])
    per_round = (pages[4] - pages[0]) / 4

    assert pages[-1] - pages[10] < per_round * 2, pages


async def test_free_pages_go_back_to_the_file_system(hub: FilledHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archivist_module, "PAGES_AT_ONCE", 8)
    monkeypatch.setattr(archivist_module, "DELETED_AT_ONCE", 256)
    await hub.add_calls(0, 400)
    await hub.publish(await hub.close(0))
    before = (await hub.rows("PRAGMA page_count"))[0][0]
    await hub.pass_to(PAID_AGE)
    await archive_all(hub)

    after = (await hub.rows("PRAGMA page_count"))[0][0]
    free = (await hub.rows("PRAGMA freelist_count"))[0][0]
    assert after < before * 0.8
    assert free < before * 0.3
