"""Signing, once: recorded first, signed after the commit, served after that.

Invariant: for one purpose and slot this validator signs one content, ever, whatever its key; after a crash between record
and signature the recorded content is signed, not what a caller would say now.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from emcd.errors import LocalProtocolError
from emcd.ledger import Connection, SignOnce, sign_once
from emcd.proto.eip712 import Domain, TypedStruct, digest
from emcd_validator.entry import read_struct
from emcd_validator.queries.items import Item, Kind, find_item, insert_draft, list_drafts, set_signature
from emcd_validator.validator import Validator


async def issue(
    validator: Validator, item: Item, also: Callable[[Connection], None] = lambda con: None
) -> Item:
    """Sign an own statement unless one about the same thing was signed before.

    Args:
        also: written in the same transaction as the draft, when this is the first.

    Returns: the statement that stands, with its signature: the earlier one if there was one.
    Raises: LocalProtocolError EMC-1802 when the ledger knows of a signature, but not of its content.
    Cancellation: a draft may stand; `finish_drafts` signs it at the next start.
    """
    domain = domain_of(validator, item.kind)

    def record(con: Connection) -> Item:
        key = (item.kind, item.round, item.author, item.key)
        known = find_item(con, validator.address, *key)
        if known is not None:
            return known
        _require_once(con, validator, item, domain, read_struct(item))
        insert_draft(con, validator.address, item)
        also(con)
        return item

    return await _sign(validator, await validator.write(record), domain)


async def find_own(validator: Validator, kind: Kind, round_index: int) -> Item | None:
    """The own statement about a round, whichever key it is of; signed, or a draft."""

    def read(con: Connection) -> Item | None:
        found = (find_item(con, validator.address, kind, round_index, key) for key in validator.keys)
        return next((item for item in found if item is not None), None)

    return await validator.read(read)


async def finish_drafts(validator: Validator) -> int:
    """Sign what was recorded before a crash. Returns: how many."""
    count = 0
    for key in validator.keys:
        for draft in await validator.read(partial(list_drafts, instance=validator.address, author=key)):
            await _sign(validator, draft, domain_of(validator, draft.kind))
            count += 1
    return count


def domain_of(validator: Validator, kind: Kind) -> Domain:
    """The contract that a kind of statement is signed for."""
    if kind is Kind.ROUND_ROOT:
        return validator.deployment.distributor_domain
    return validator.deployment.staking_domain


async def _sign(validator: Validator, item: Item, domain: Domain) -> Item:
    if item.signature is not None:
        return item
    signature = validator.sign(item.author, domain, read_struct(item))
    await validator.write(lambda con: set_signature(con, validator.address, item, signature))
    return Item(item.kind, item.round, item.author, item.key, item.data, signature, item.held_at_ms)


def _require_once(
    con: Connection, validator: Validator, item: Item, domain: Domain, struct: TypedStruct
) -> None:
    slot = f"{item.round}:{item.key.hex()}" if item.key else str(item.round)
    outcome = sign_once(con, validator.address, f"validator.{item.kind.value}", slot, digest(domain, struct))
    if outcome is SignOnce.CONFLICT:
        raise LocalProtocolError("EMC-1802", f"{item.kind.value} of round {item.round}")
