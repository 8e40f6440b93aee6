"""The hub's rows on the way to the money: requests, reports, purchases that come, go and come again."""

from __future__ import annotations

import sqlite3

import pytest

from emcd.accounting.payout import (
    Back,
    Claimed,
    ExtractionState,
    Published,
    RewardState,
    read_reward,
    require_extraction_move,
)
from emcd.errors import LocalProtocolError
from emcd.proto.address import hex_hash
from emcd.proto.settler_report import ReportKind, SettlerReport
from emcd.testing import make_key
from emcd_hub import schema as hub_schema
from emcd_hub.billing.queries import insert_account, list_accounts, vault_account
from emcd_hub.rounds.chain_row import Bought, credit_deposit, list_deposits, mark_listed, undo_above
from emcd_hub.rounds.extraction_row import (
    MAX_OPEN,
    Asked,
    list_open_extractions,
    list_wallet_extractions,
)
from emcd_hub.rounds.payout_path import Reported, take_report
from emcd_settler import schema as settler_schema
from tests.support.payout_ledger import SETTLER, WALLET, PayoutLedger

E = ExtractionState


@pytest.fixture
def world() -> PayoutLedger:
    return PayoutLedger()


def say(
    world: PayoutLedger, kind: ReportKind, text: str = "", *, by: str = SETTLER, at_ms: int = 0
) -> Reported:
    tx_hash = b"t" * 32 if kind is ReportKind.SUBMITTED else bytes(32)
    report = SettlerReport(by, WALLET, 0, int(kind), text, tx_hash, at_ms or world.now_ms)  # type: ignore[arg-type]
    return take_report(world.con, report, world.now_ms)


def test_request_goes_every_step_with_its_evidence(world: PayoutLedger) -> None:
    world.ask(0, 3)
    assert world.path(0).state is E.REQUESTED
    world.now_s += 1
    world.close(3)
    waiting = world.path(0)
    assert (waiting.state, waiting.settled_at_ms) == (E.WAITING, world.now_ms)
    world.publish(4, 60)
    published = world.path(0)
    assert published.state is E.PUBLISHED
    assert published.published == Published(
        4, hex_hash(b"p" + (1).to_bytes(31, "big")), 1, world.now_s, world.now_s + 60
    )
    world.now_s += 60
    assert world.path(0).state is E.SYNCHRONISED
    assert say(world, ReportKind.SUBMITTED) is Reported.TAKEN
    submitted = world.path(0)
    assert submitted.state is E.SUBMITTED
    assert submitted.submitted is not None
    assert (submitted.submitted.tx_hash, submitted.submitted.by) == (hex_hash(b"t" * 32), SETTLER)
    tx_hash = world.claim(4, 0, amount_wei=99)
    paid = world.path(0)
    assert paid.state is E.CLAIMED
    assert paid.claimed is not None
    assert (paid.claimed.tx_hash, paid.claimed.amount_wei, paid.claimed.block) == (hex_hash(tx_hash), "99", 2)
    assert paid.ended_at_ms == world.now_ms


def test_veto_brings_a_published_request_back_and_says_so(world: PayoutLedger) -> None:
    world.ask(0, 3)
    world.close(3)
    world.publish(3, 60)
    world.veto(3)
    path = world.path(0)
    assert (path.state, path.published) == (E.WAITING, None)
    assert path.went_back is not None
    assert (path.went_back.state, path.went_back.why) == (E.PUBLISHED, Back.VETO)


def test_reorganisation_opens_a_paid_request_again_without_its_transaction(world: PayoutLedger) -> None:
    world.ask(0, 3)
    world.publish(3, 0)
    say(world, ReportKind.SUBMITTED)
    world.claim(3, 0)
    world.reorganise(0)
    path = world.path(0)
    assert (path.state, path.submitted, path.claimed, path.ended_at_ms) == (E.REQUESTED, None, None, None)
    assert path.went_back is not None
    assert path.went_back.state is E.CLAIMED
    world.publish(3, 0)
    assert world.path(0).state is E.SYNCHRONISED


def test_claim_that_failed_brings_a_submitted_request_back(world: PayoutLedger) -> None:
    world.ask(0, 3)
    world.publish(3, 0)
    say(world, ReportKind.SUBMITTED)
    assert say(world, ReportKind.FAILED, "BadProof", at_ms=world.now_ms + 1) is Reported.TAKEN
    path = world.path(0)
    assert path.state is E.SYNCHRONISED
    assert path.note is not None
    assert path.note.text == "BadProof"
    assert path.went_back is not None
    assert path.went_back.why is Back.CLAIM_FAILED


def test_report_of_a_small_claim_is_shown_while_the_request_is_open(world: PayoutLedger) -> None:
    world.ask(0, 3)
    world.publish(3, 0)
    assert say(world, ReportKind.HELD, "0.1 EMC is below 1 EMC") is Reported.TAKEN
    path = world.path(0)
    assert (path.state, path.went_back) == (E.SYNCHRONISED, None)
    assert path.note is not None
    assert (path.note.by, path.note.text) == (SETTLER, "0.1 EMC is below 1 EMC")
    world.claim(3)
    assert world.path(0).note is None


def test_report_that_is_old_strange_or_late_changes_nothing(world: PayoutLedger) -> None:
    assert say(world, ReportKind.HELD, "x") is Reported.NO_REQUEST
    world.ask(0, 3)
    assert say(world, ReportKind.HELD, "x") is Reported.NO_PUBLISHER
    world.publish(3, 0)
    assert say(world, ReportKind.HELD, "x", by=make_key("liar").address) is Reported.NO_PUBLISHER
    assert say(world, ReportKind.HELD, "new") is Reported.TAKEN
    assert say(world, ReportKind.HELD, "replayed") is Reported.OLD
    assert say(world, ReportKind.SUBMITTED, at_ms=world.now_ms - 1) is Reported.OLD
    note = world.path(0).note
    assert note is not None
    assert note.text == "new"
    world.claim(3, 0)
    assert say(world, ReportKind.FAILED, "late", at_ms=world.now_ms + 9) is Reported.NO_REQUEST


def test_wallets_own_claim_ends_what_it_asked_for_up_to_its_round(world: PayoutLedger) -> None:
    world.ask(0, 3)
    world.ask(1, 4, submit=False)
    world.ask(2, 5)
    world.publish(4, 0)
    world.claim(4)
    assert [world.path(n).state for n in range(3)] == [E.CLAIMED, E.CLAIMED, E.REQUESTED]


def test_request_past_its_deadline_is_expired_and_frees_its_place(world: PayoutLedger) -> None:
    for nonce in range(MAX_OPEN):
        assert world.ask(nonce, 3, lasts_s=10) is Asked.TAKEN
    assert world.ask(99, 3) is Asked.TOO_MANY
    world.now_s += 11
    assert world.ask(99, 3) is Asked.TAKEN
    assert world.path(0).state is E.EXPIRED
    assert world.path(0).reason
    assert [row.extraction.nonce for row in list_open_extractions(world.con, world.now_ms)] == [99]


def test_payment_in_the_last_second_is_no_expiry(world: PayoutLedger) -> None:
    world.ask(0, 3, lasts_s=10)
    world.publish(3, 0)
    world.now_s += 11
    assert world.path(0).state is E.EXPIRED
    world.claim(3, 0)
    assert world.path(0).state is E.CLAIMED


def test_wallets_requests_are_listed_newest_first_page_by_page(world: PayoutLedger) -> None:
    for nonce in range(7):
        world.ask(nonce, 3, lasts_s=5)
        world.now_s += 10 if nonce % 2 else 0
    seen: list[int] = []
    before = None
    while page := list_wallet_extractions(world.con, WALLET, 3, before):
        seen += [row.extraction.nonce for row in page]
        before = (page[-1].requested_at_ms, page[-1].extraction.nonce)
    assert seen == [6, 5, 4, 3, 2, 1, 0]


def test_open_requests_are_listed_oldest_first_page_by_page(world: PayoutLedger) -> None:
    for nonce in range(7):
        world.ask(nonce, 3)
    seen: list[int] = []
    after = None
    while page := list_open_extractions(world.con, world.now_ms, 2, after):
        seen += [row.extraction.nonce for row in page]
        after = (page[-1].requested_at_ms, WALLET, page[-1].extraction.nonce)
    assert seen == list(range(7))


@pytest.mark.parametrize(
    ("before", "after", "back"),
    [
        (E.SYNCHRONISED, E.WAITING, None),
        (E.CLAIMED, E.SYNCHRONISED, Back.VETO),
        (E.CLAIMED, E.REFUSED, None),
        (E.REFUSED, E.CLAIMED, None),
        (E.PUBLISHED, E.WAITING, Back.CLAIM_FAILED),
        (E.EXPIRED, E.SYNCHRONISED, Back.REORGANISATION),
    ],
)
def test_move_that_nothing_explains_is_a_fault(before: E, after: E, back: Back | None) -> None:
    with pytest.raises(LocalProtocolError, match="EMC-1791"):
        require_extraction_move(before, after, back)


def test_reward_state_follows_from_publication_time_and_claim() -> None:
    published = Published(5, "0x", 1, 10, 100)
    claimed = Claimed("0x", 2, 101, "1", "0x")

    def state(now_s: int, **facts: object) -> RewardState:
        known = {"is_void": False, "published": published, "claimed": None, **facts}
        return read_reward(now_s=now_s, **known)  # type: ignore[arg-type]

    assert state(50, published=None) is RewardState.SETTLED
    assert state(99) is RewardState.PUBLISHED
    assert state(100) is RewardState.CLAIMABLE
    assert state(101, claimed=claimed) is RewardState.CLAIMED
    assert state(101, is_void=True) is RewardState.VOID


# ------------------------------------------------------------------------------------ purchases


def bought(index: int, block: int, account: str = "acct_a") -> Bought:
    return Bought(index, vault_account(account), "0xpayer", 5, 700, block, block.to_bytes(32, "big"))


def test_purchase_undone_after_its_bundle_is_not_listed_again(world: PayoutLedger) -> None:
    insert_account(world.con, "acct_a", "a", 1)
    assert credit_deposit(world.con, bought(0, 1), 4, 1) == "acct_a"
    assert [entry.index for entry in list_deposits(world.con, 4)] == [0]
    world.close(4)
    mark_listed(world.con, 4, (), [0])
    assert [item.credits_micro for item in undo_above(world.con, 0, 2)] == [700]
    assert list_deposits(world.con, 4) == []
    assert credit_deposit(world.con, bought(0, 2), 6, 3) == "acct_a"
    assert list_deposits(world.con, 6) == []


def test_purchase_undone_before_its_bundle_is_listed_where_it_came_again(world: PayoutLedger) -> None:
    insert_account(world.con, "acct_a", "a", 1)
    credit_deposit(world.con, bought(0, 1), 4, 1)
    undo_above(world.con, 0, 2)
    credit_deposit(world.con, bought(0, 2), 6, 3)
    assert list_deposits(world.con, 4) == []
    assert [(entry.index, entry.block) for entry in list_deposits(world.con, 6)] == [(0, 2)]


def test_purchases_of_a_round_that_came_to_nothing_are_listed_in_the_next(world: PayoutLedger) -> None:
    insert_account(world.con, "acct_a", "a", 1)
    credit_deposit(world.con, bought(1, 1), 4, 1)
    credit_deposit(world.con, bought(0, 1), 5, 1)
    assert [entry.index for entry in list_deposits(world.con, 5, (4,))] == [0, 1]


def test_purchase_beyond_what_the_books_hold_is_held(world: PayoutLedger) -> None:
    insert_account(world.con, "acct_a", "a", 1)
    world.con.execute("UPDATE hub_accounts SET vault_micro = ?", (2**62 - 5,))
    assert credit_deposit(world.con, bought(0, 1), 4, 1) is None
    assert list_deposits(world.con, 4) == []


# ------------------------------------------------------------------------------------ ledgers of before


def test_settlers_requests_of_the_first_release_are_kept_as_they_were() -> None:
    con = sqlite3.connect(":memory:")
    first, second = settler_schema.MIGRATIONS[:2]
    con.executescript(first.sql)
    old = (
        "settler",
        WALLET,
        bytes(32),
        SETTLER,
        3,
        1,
        bytes(32),
        bytes(65),
        "submitted",
        2,
        bytes(32),
        b"",
        "",
        None,
        9,
    )
    con.execute(f"INSERT INTO settler_extractions VALUES ({','.join('?' * len(old))})", old)
    con.executescript(second.sql)
    assert con.execute("SELECT * FROM settler_extractions").fetchall() == [(*old, "")]


def test_hubs_accounts_of_the_first_release_owe_nothing() -> None:
    con = sqlite3.connect(":memory:")
    con.row_factory = sqlite3.Row
    for migration in hub_schema.MIGRATIONS[:3]:
        con.executescript(migration.sql)
    con.execute("INSERT INTO hub_accounts VALUES ('acct_a', 'a', ?, 5, 7, 1)", (vault_account("acct_a"),))
    for migration in hub_schema.MIGRATIONS[3:]:
        con.executescript(migration.sql)
    [account] = list_accounts(con)
    assert (account.granted_micro, account.usable_vault_micro, account.debt_micro) == (5, 7, 0)
