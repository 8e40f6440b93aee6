"""A validator with several keys: which of them speaks when, and where its rows stay."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from emcd.accounting.plan import compute_commitment
from emcd.config import KeyFile, RoleEntry, list_key_files
from emcd.errors import LocalProtocolError, RecoverableError
from emcd.ledger import Connection, Ledger, open_ledger
from emcd.proto.bundle import CommitmentEntry
from emcd.proto.messages import PlanCommitment
from emcd.proto.signing import recover
from emcd.testing import make_key
from emcd.types import Address
from emcd_validator.entry import commitment_item
from emcd_validator.queries.items import Kind, insert_draft
from emcd_validator.queries.keys import ensure_instance
from emcd_validator.schema import MIGRATIONS
from emcd_validator.signatory import find_own, finish_drafts, issue
from emcd_validator.validator import Validator
from tests.support.validator_world import (
    KEY_NAMES,
    FakeHub,
    Parts,
    make_config,
    make_parts,
    make_world,
    set_clock,
)

OLD, NEW, STRANGER = make_key(KEY_NAMES[0]), make_key("next key"), make_key("stranger").address
EPOCH_ROUNDS = 12


class Sets:
    """The frozen sets: the old key's until an epoch, then the new one's."""

    def __init__(self, new_from_epoch: int = 1) -> None:
        self.new_from_epoch = new_from_epoch
        self.asked: list[int] = []
        self.is_away = False

    async def fetch(self, epoch: int) -> Collection[Address]:
        await trio.lowlevel.checkpoint()
        self.asked.append(epoch)
        if self.is_away:
            raise RecoverableError("EMC-1502", "no endpoint answers")
        return {STRANGER, (NEW if epoch >= self.new_from_epoch else OLD).address}


def rotating(parts: Parts, sets: Sets) -> Validator:
    return replace(parts.validator, more_signers=(NEW,), fetch_members=sets.fetch)


@pytest.fixture
def hub() -> FakeHub:
    return make_world()


@pytest.fixture
async def parts(tmp_path: Path, hub: FakeHub, ledger_of_validator: Ledger) -> Parts:
    return make_parts(KEY_NAMES[0], ledger_of_validator, hub, tmp_path)


@pytest.fixture
async def ledger_of_validator(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with open_ledger(tmp_path / "ledger.db", {"validator": MIGRATIONS}) as ledger:
        yield ledger


def statement(author: Address, index: int, commitment: bytes = bytes(32)) -> CommitmentEntry:
    return CommitmentEntry(PlanCommitment(author, index, commitment, 5), b"")


# ---------------------------------------------------------------------- which key speaks


async def test_speaker_is_the_key_in_the_frozen_set(parts: Parts) -> None:
    sets = Sets()
    validator = rotating(parts, sets)

    assert validator.speaker({STRANGER, NEW.address}) == NEW.address
    assert validator.speaker({STRANGER, OLD.address}) == OLD.address
    assert validator.speaker({STRANGER}) == OLD.address
    assert await validator.find_speaker(EPOCH_ROUNDS - 1) == OLD.address
    assert await validator.find_speaker(EPOCH_ROUNDS) == NEW.address
    assert validator.address == OLD.address


async def test_validator_with_one_key_never_asks_the_chain_which(parts: Parts) -> None:
    sets = Sets()
    sets.is_away = True
    validator = replace(parts.validator, fetch_members=sets.fetch)

    assert await validator.find_speaker(100) == OLD.address
    assert sets.asked == []
    with pytest.raises(RecoverableError):
        await rotating(parts, sets).find_speaker(100)


async def test_statement_is_signed_by_its_authors_key_and_by_no_other(parts: Parts) -> None:
    validator = rotating(parts, Sets())
    for key, index in ((OLD, 11), (NEW, 12)):
        item = await issue(validator, commitment_item(statement(key.address, index)))
        assert item.signature is not None
        struct = statement(key.address, index).commitment
        assert recover(validator.domain, struct, item.signature) == key.address
        found = await find_own(validator, Kind.COMMITMENT, index)
        assert found is not None
        assert found.author == key.address
    with pytest.raises(LocalProtocolError, match="EMC-1834"):
        validator.sign(STRANGER, validator.domain, statement(STRANGER, 1).commitment)


async def test_two_keys_never_sign_two_statements_about_one_round(parts: Parts) -> None:
    validator = rotating(parts, Sets())
    await issue(validator, commitment_item(statement(OLD.address, 12)))

    with pytest.raises(LocalProtocolError, match="EMC-1802"):
        await issue(validator, commitment_item(statement(NEW.address, 12)))


async def test_drafts_of_both_keys_are_finished_after_a_crash(parts: Parts) -> None:
    validator = rotating(parts, Sets())

    def crash(con: Connection) -> None:
        for key, index in ((OLD, 3), (NEW, 4)):
            insert_draft(con, validator.address, commitment_item(statement(key.address, index)))

    await validator.write(crash)
    assert await finish_drafts(validator) == 2
    assert await finish_drafts(validator) == 0


async def test_commitment_to_an_epochs_first_round_is_of_the_coming_key(parts: Parts, hub: FakeHub) -> None:
    sets = Sets()
    parts.committer._validator = validator = rotating(parts, sets)
    set_clock(hub, validator.params.round_start_ms(EPOCH_ROUNDS - 1) + 10)
    entry = await parts.committer.commit(EPOCH_ROUNDS)
    assert entry is not None
    assert entry.commitment.validator == NEW.address
    again = await parts.committer.commit(EPOCH_ROUNDS)
    assert again == entry


async def test_commitment_waits_while_the_chain_cant_say_which_key_speaks(parts: Parts, hub: FakeHub) -> None:
    sets = Sets()
    sets.is_away = True
    parts.committer._validator = validator = rotating(parts, sets)
    set_clock(hub, validator.params.round_start_ms(3) + 10)
    with pytest.raises(RecoverableError):
        await parts.committer.commit(4)
    sets.is_away = False
    entry = await parts.committer.commit(4)
    assert entry is not None
    assert entry.commitment.validator == OLD.address


async def test_plan_of_a_round_is_not_made_for_a_key_that_is_not_in_its_set(
    parts: Parts, hub: FakeHub
) -> None:
    """The rotation was cancelled between the commitment and the round."""
    sets = Sets(new_from_epoch=0)
    parts.committer._validator = validator = rotating(parts, sets)
    set_clock(hub, validator.params.round_start_ms(3) + 10)
    entry = await parts.committer.commit(4)
    assert entry is not None
    assert entry.commitment.validator == NEW.address
    set_clock(hub, validator.params.round_start_ms(4) + 1_000)
    view = await parts.views.fetch_view(4)
    assert OLD.address in view.members
    assert not await parts.committer.plan(view)


# ---------------------------------------------------------------------- where its rows stay


async def ensure(ledger: Ledger, *addresses: Address) -> Address:
    return await ledger.write(lambda con: ensure_instance(con, addresses))


async def test_rows_stay_under_the_first_key_however_the_configuration_names_them(
    ledger_of_validator: Ledger,
) -> None:
    a, b, c = (make_key(name).address for name in "abc")

    assert await ensure(ledger_of_validator, a) == a
    assert await ensure(ledger_of_validator, a, b) == a
    assert await ensure(ledger_of_validator, b, a) == a
    assert await ensure(ledger_of_validator, b) == a  # the old key was taken out
    assert await ensure(ledger_of_validator, c, b) == a  # and the next one put in
    assert await ensure(ledger_of_validator, make_key("another validator").address) != a


async def test_rows_of_a_release_without_kept_keys_are_found(ledger_of_validator: Ledger) -> None:
    a, b = (make_key(name).address for name in "ab")

    def insert(con: Connection) -> None:
        con.execute(
            "INSERT INTO validator_rounds VALUES (?, 1, ?, ?, ?, 1, NULL)",
            (b, bytes(32), bytes(32), compute_commitment(bytes(32), bytes(32), bytes(32))),
        )

    await ledger_of_validator.write(insert)
    assert await ensure(ledger_of_validator, a, b) == b


def test_daemon_finds_every_key_to_decrypt(hub: FakeHub, tmp_path: Path) -> None:
    more = (KeyFile(Path("old.json")), KeyFile(Path("next.json")))
    config = make_config(KEY_NAMES[0], "http://127.0.0.1:1", tmp_path, tmp_path, more_keys=more)

    found = list_key_files((RoleEntry("validator", "v", config),))
    assert [ref for _, ref in found] == [config.key, *more]
