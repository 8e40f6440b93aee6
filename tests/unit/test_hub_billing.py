"""Accounts in memory, keys, secrets."""

from __future__ import annotations

import pytest

from emcd.errors import LocalProtocolError
from emcd_hub.billing.book import AccountBook, Charge, Refused, Reservation
from emcd_hub.billing.keys import KeyIndex
from emcd_hub.billing.secret import equals, hash_secret, make_secret, public_part
from emcd_hub.bootstrap import make_api_key

KEY = make_api_key("a").key
NOW = 1_800_000_000_000


def reserve(book: AccountBook, wanted: int, least: int | None = None) -> Reservation:
    held = book.reserve(KEY, wanted, wanted if least is None else least, NOW)
    assert isinstance(held, Reservation)
    return held


def test_grants_are_used_before_the_vault() -> None:
    book = AccountBook()
    book.load("a", 30, 100)
    assert book.settle(reserve(book, 50), 50, NOW) == Charge(30, 20)
    assert book.settle(reserve(book, 50), 50, NOW) == Charge(0, 50)


def test_vault_first_when_configured() -> None:
    book = AccountBook(use_first="vault")
    book.load("a", 30, 40)
    assert book.settle(reserve(book, 50), 50, NOW) == Charge(10, 40)


def test_reserved_credits_are_not_reserved_twice() -> None:
    book = AccountBook()
    book.load("a", 100, 0)
    first = reserve(book, 60)
    assert book.reserve(KEY, 60, 60, NOW) is Refused.HELD
    assert book.reserve(KEY, 101, 101, NOW) is Refused.INSUFFICIENT
    book.release(first)
    assert reserve(book, 60).amount_micro == 60


def test_stream_that_cant_hold_its_bound_holds_what_it_needs_to_begin() -> None:
    book = AccountBook()
    account = book.load("a", 100, 0)
    reserve(book, 60)
    assert reserve(book, 60, 1).amount_micro == 1
    assert account.free_micro == 39


def test_reservation_extends_as_far_as_the_account_reaches() -> None:
    book = AccountBook()
    book.load("a", 100, 0)
    held = reserve(book, 10)
    reserve(book, 50)
    assert book.extend(held, 30, NOW) == 30
    assert book.extend(held, 500, NOW) == 50
    assert book.extend(held, 5, NOW) == 50


def test_unknown_account_and_too_many_calls_are_outcomes() -> None:
    book = AccountBook(max_calls=1)
    book.load("a", 100, 0)
    assert book.reserve(make_api_key("b").key, 1, 1, NOW) is Refused.NO_ACCOUNT
    reserve(book, 1)
    assert book.reserve(KEY, 1, 1, NOW) is Refused.TOO_MANY_CALLS


def test_misuse_is_a_fault_and_changes_nothing() -> None:
    book = AccountBook()
    account = book.load("a", 100, 0)
    held = reserve(book, 10)
    for charge in (11, -1):
        with pytest.raises(LocalProtocolError):
            book.settle(held, charge, NOW)
    book.settle(held, 10, NOW)
    with pytest.raises(LocalProtocolError):
        book.settle(held, 0, NOW)
    with pytest.raises(LocalProtocolError):
        book.extend(held, 5, NOW)
    with pytest.raises(LocalProtocolError):
        book.load("a", 1, 1)
    with pytest.raises(LocalProtocolError):
        book.credit("b", 1, 1)
    book.release(held)
    assert (account.granted_micro, account.reserved_micro, account.calls) == (90, 0, 0)


def test_undone_purchase_leaves_calls_in_flight_what_they_hold() -> None:
    book = AccountBook()
    account = book.load("a", 0, 100)
    held = reserve(book, 70)
    book.undo_vault("a", 100)
    assert (account.free_micro, account.usable_vault_micro, account.debt_micro) == (0, 0, 0)
    assert book.extend(held, 90, NOW) == 70
    assert book.settle(held, 70, NOW) == Charge(0, 70)
    assert (account.balance_micro, account.debt_micro) == (0, 70)


def test_next_purchase_pays_the_debt_first() -> None:
    book = AccountBook()
    account = book.load("a", 0, 100)
    book.settle(reserve(book, 80), 80, NOW)
    book.undo_vault("a", 100)
    assert (account.usable_vault_micro, account.debt_micro) == (0, 80)
    assert book.reserve(KEY, 1, 1, NOW) is Refused.INSUFFICIENT
    book.credit("a", 0, 90)
    assert (account.usable_vault_micro, account.debt_micro, account.free_micro) == (10, 0, 10)


def test_grant_is_not_taken_for_a_debt_and_is_used_although_the_vault_is_first() -> None:
    book = AccountBook(use_first="vault")
    account = book.load("a", 50, 100, 90)
    assert account.free_micro == 60
    assert book.settle(reserve(book, 40), 40, NOW) == Charge(30, 10)
    assert (account.granted_micro, account.usable_vault_micro, account.debt_micro) == (20, 0, 0)


def test_secret_has_256_bits_and_shows_48() -> None:
    secret = make_secret("emc_sk_", bytes)
    assert secret == "emc_sk_" + "A" * 43
    assert public_part(secret) == "emc_sk_AAAAAAAA"
    assert equals(hash_secret(secret), hash_secret(secret))


def test_key_is_found_by_its_secret_alone() -> None:
    index = KeyIndex()
    mine, other = make_api_key("a"), make_api_key("b")
    index.add(mine.key)
    index.add(other.key)
    assert index.find(mine.secret.encode()) is mine.key
    assert index.find_by_id(other.key.key_id) is other.key
    twin = mine.secret[:15] + other.secret[15:]
    assert public_part(twin) == mine.key.shown
    for wrong in (twin, "", mine.secret[:-1], mine.secret + "A", "\xe4" * 25):
        assert index.find(wrong.encode()) is None
    assert index.remove(mine.key.key_id)
    assert not index.remove(mine.key.key_id)
    assert index.find(mine.secret.encode()) is None
    assert index.find_by_id(mine.key.key_id) is None
