"""The chain's outbox and cursors in the ledger, method by method."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from emcd.errors import LocalProtocolError
from emcd.ledger import Connection, IntegrityError, Ledger
from emcd.ledger.outbox_store import CURSORS_KEPT, LedgerEventSink, LedgerOutboxStore, StoredTx

SENDER, OTHER = "0xSender", "0xOther"


def hash_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


async def add(store: LedgerOutboxStore, key: str, sender: str = SENDER, data: bytes = b"d") -> StoredTx:
    return await store.add(sender, key, to_address="0xTo", data=data, value_wei=10**20, gas=0, label="x")


async def test_add_same_key_again_returns_what_stands(ledger: Ledger) -> None:
    store = LedgerOutboxStore(ledger)
    first = await add(store, "a")
    assert (first.state, first.nonce, first.value_wei) == ("intent", None, 10**20)
    assert await add(store, "a", data=b"other") == first
    assert await store.find(SENDER, "a") == first
    assert await store.find(OTHER, "a") is None


async def test_assign_gives_each_row_its_own_nonce_once(ledger: Ledger) -> None:
    store = LedgerOutboxStore(ledger)
    for key in "abc":
        await add(store, key)
    assert (await store.assign(SENDER, "a", least_nonce=5, gas=100)).nonce == 5
    assert (await store.assign(SENDER, "b", least_nonce=5, gas=100)).nonce == 6
    again = await store.assign(SENDER, "a", least_nonce=9, gas=999)
    assert (again.nonce, again.gas, again.state) == (5, 100, "ready")
    assert (await store.assign(SENDER, "c", least_nonce=20, gas=1)).nonce == 20


async def test_assign_other_sender_counts_by_itself(ledger: Ledger) -> None:
    store = LedgerOutboxStore(ledger)
    await add(store, "a")
    await add(store, "a", OTHER)
    await store.assign(SENDER, "a", least_nonce=5, gas=1)
    assert (await store.assign(OTHER, "a", least_nonce=0, gas=1)).nonce == 0


async def test_assign_unknown_key_is_our_bug(ledger: Ledger) -> None:
    with pytest.raises(LocalProtocolError, match="EMC-1211"):
        await LedgerOutboxStore(ledger).assign(SENDER, "none", least_nonce=0, gas=1)


async def test_set_state_final_never_changes(ledger: Ledger) -> None:
    store = LedgerOutboxStore(ledger)
    await add(store, "a")
    await store.set_state(SENDER, "a", "mined", tx_hash=hash_of(1), block=7, block_hash=hash_of(2))
    await store.set_state(SENDER, "a", "ready", detail="reorganised out")
    open_again = await store.find(SENDER, "a")
    assert open_again is not None and (open_again.state, open_again.tx_hash) == ("ready", None)
    await store.set_state(SENDER, "a", "confirmed", tx_hash=hash_of(1), block=8, block_hash=hash_of(3))
    await store.set_state(SENDER, "a", "failed", detail="late")
    final = await store.find(SENDER, "a")
    assert final is not None and (final.state, final.block, final.detail) == ("confirmed", 8, "")
    assert await store.list_open(SENDER) == []


async def test_set_state_unknown_word_is_refused(ledger: Ledger) -> None:
    store = LedgerOutboxStore(ledger)
    await add(store, "a")
    with pytest.raises(IntegrityError):
        await store.set_state(SENDER, "a", "sent")


async def test_list_open_keeps_the_order_of_adding(ledger: Ledger) -> None:
    store = LedgerOutboxStore(ledger)
    for key in ("z", "m", "a"):
        await add(store, key)
    await store.set_state(SENDER, "m", "failed")
    assert [row.key for row in await store.list_open(SENDER)] == ["z", "a"]


async def test_attempts_are_kept_oldest_first_and_once(ledger: Ledger) -> None:
    store = LedgerOutboxStore(ledger)
    await add(store, "a")
    for number in (2, 1, 2):
        await store.add_attempt(
            SENDER, "a", tx_hash=hash_of(number), raw=b"raw", max_fee_wei=2**70, tip_wei=number
        )
    attempts = await store.list_attempts(SENDER, "a")
    assert [(a.tx_hash, a.max_fee_wei, a.tip_wei) for a in attempts] == [
        (hash_of(2), 2**70, 2),
        (hash_of(1), 2**70, 1),
    ]


class Recorder:
    """A sink's functions over the cursor table's neighbour."""

    def __init__(self, ledger: Ledger) -> None:
        self.applied: list[Sequence[str]] = []
        self.undone: list[int] = []
        self.sink = LedgerEventSink(ledger, "w", self._apply, self._undo)

    def _apply(self, con: Connection, events: Sequence[str]) -> None:
        if "bad" in events:
            raise ValueError("bad event")
        self.applied.append(events)

    def _undo(self, con: Connection, number: int) -> None:
        self.undone.append(number)


async def test_sink_effects_and_cursor_stand_or_fall_together(ledger: Ledger) -> None:
    recorder = Recorder(ledger)
    await recorder.sink.apply(["one"], 10, hash_of(10))
    with pytest.raises(ValueError, match="bad event"):
        await recorder.sink.apply(["bad"], 11, hash_of(11))
    assert await recorder.sink.load_cursors() == [(10, hash_of(10))]


async def test_sink_same_cursor_again_applies_nothing(ledger: Ledger) -> None:
    recorder = Recorder(ledger)
    await recorder.sink.apply(["one"], 10, hash_of(10))
    await recorder.sink.apply(["one"], 10, hash_of(10))
    assert recorder.applied == [["one"]]


@pytest.mark.parametrize(("number", "block_hash"), [(10, 99), (9, 9)])
async def test_sink_older_or_other_block_is_refused(ledger: Ledger, number: int, block_hash: int) -> None:
    recorder = Recorder(ledger)
    await recorder.sink.apply(["one"], 10, hash_of(10))
    with pytest.raises(LocalProtocolError, match="EMC-1210"):
        await recorder.sink.apply(["two"], number, hash_of(block_hash))


async def test_sink_rollback_drops_cursors_above(ledger: Ledger) -> None:
    recorder = Recorder(ledger)
    for number in (1, 2, 3):
        await recorder.sink.apply([], number, hash_of(number))
    await recorder.sink.rollback(1)
    assert recorder.undone == [1]
    assert await recorder.sink.load_cursors() == [(1, hash_of(1))]
    await recorder.sink.rollback(-1)
    assert await recorder.sink.load_cursors() == []


async def test_sink_keeps_the_newest_cursors_only(ledger: Ledger) -> None:
    recorder = Recorder(ledger)
    other = LedgerEventSink(ledger, "other", lambda con, events: None, lambda con, number: None)
    await other.apply([], 1, hash_of(1))
    for number in range(CURSORS_KEPT + 5):
        await recorder.sink.apply([], number, hash_of(number))
    cursors = await recorder.sink.load_cursors()
    assert len(cursors) == CURSORS_KEPT
    assert cursors[0][0] == 5
    assert await other.load_cursors() == [(1, hash_of(1))]


async def settle(store: LedgerOutboxStore, key: str, block: int, state: str = "confirmed") -> None:
    await add(store, key)
    await store.assign(SENDER, key, least_nonce=0, gas=100)
    await store.set_state(
        SENDER, key, state, tx_hash=hash_of(block), block=block, block_hash=hash_of(block), fee_wei=7
    )


async def test_list_settled_gives_the_newest_blocks_first_and_no_deeper(ledger: Ledger) -> None:
    store = LedgerOutboxStore(ledger)
    for key, block, state in (("a", 10, "confirmed"), ("b", 14, "failed"), ("c", 15, "replaced")):
        await settle(store, key, block, state)
    await add(store, "never sent")
    await store.set_state(SENDER, "never sent", "failed")
    await add(store, "open")
    assert [row.key for row in await store.list_settled(SENDER, 6)] == ["c", "b", "a"]
    assert [row.key for row in await store.list_settled(SENDER, 5)] == ["c", "b"]
    assert await store.list_settled(OTHER, 5) == []


async def test_reopen_takes_a_settled_row_back_with_its_nonce(ledger: Ledger) -> None:
    store = LedgerOutboxStore(ledger)
    await settle(store, "a", 10)
    await store.reopen(SENDER, "a", detail="block 10 was reorganised out")
    row = await store.find(SENDER, "a")
    assert row is not None
    assert (row.state, row.nonce, row.tx_hash, row.block, row.fee_wei) == ("ready", 0, None, None, 0)
    assert [r.key for r in await store.list_open(SENDER)] == ["a"]


async def test_reopen_leaves_open_rows_and_those_without_a_nonce_alone(ledger: Ledger) -> None:
    store = LedgerOutboxStore(ledger)
    await add(store, "refused")
    await store.set_state(SENDER, "refused", "failed", detail="reverts")
    await add(store, "mined")
    await store.assign(SENDER, "mined", least_nonce=0, gas=1)
    await store.set_state(SENDER, "mined", "mined", tx_hash=hash_of(1), block=1, block_hash=hash_of(1))
    for key, state in (("refused", "failed"), ("mined", "mined")):
        await store.reopen(SENDER, key, detail="x")
        row = await store.find(SENDER, key)
        assert row is not None and row.state == state


async def test_fetch_promised_wei_counts_what_was_paid_and_what_may_be(ledger: Ledger) -> None:
    store = LedgerOutboxStore(ledger)
    await settle(store, "paid", 10)
    await settle(store, "lost", 11, "replaced")
    await ledger.write(lambda con: con.execute("UPDATE chain_outbox SET fee_wei = NULL WHERE key = 'lost'"))
    await add(store, "open")
    await store.assign(SENDER, "open", least_nonce=0, gas=100)
    for number, (key, fee) in enumerate((("paid", 9), ("lost", 9), ("open", 3), ("open", 5))):
        await store.add_attempt(
            SENDER, key, tx_hash=hash_of(100 + number), raw=b"", max_fee_wei=fee, tip_wei=1
        )
    day_ms = 86_400_000
    assert await store.fetch_promised_wei(SENDER, within_ms=day_ms, besides="") == 7 + 100 * 5
    assert await store.fetch_promised_wei(SENDER, within_ms=day_ms, besides="open") == 7
    assert await store.fetch_promised_wei(OTHER, within_ms=day_ms, besides="") == 0
    await ledger.write(lambda con: con.execute("UPDATE chain_attempts SET signed_at_ms = 0"))
    assert await store.fetch_promised_wei(SENDER, within_ms=day_ms, besides="") == 0


async def test_add_attempt_with_another_gas_limit_changes_the_open_rows(ledger: Ledger) -> None:
    store = LedgerOutboxStore(ledger)
    await add(store, "a")
    await store.assign(SENDER, "a", least_nonce=0, gas=5)
    for number, gas, wanted in ((1, 0, 5), (2, 9, 9), (3, 0, 9)):
        await store.add_attempt(
            SENDER, "a", tx_hash=hash_of(number), raw=b"", max_fee_wei=1, tip_wei=1, gas=gas
        )
        row = await store.find(SENDER, "a")
        assert row is not None and row.gas == wanted
    await store.set_state(SENDER, "a", "failed", detail="reverts")
    await store.add_attempt(SENDER, "a", tx_hash=hash_of(4), raw=b"", max_fee_wei=1, tip_wei=1, gas=1)
    row = await store.find(SENDER, "a")
    assert row is not None and row.gas == 9
