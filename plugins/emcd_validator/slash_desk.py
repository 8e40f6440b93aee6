"""Signs orders to slash for offences that were proven here, and for nothing else.

Invariants: one order an offence and epoch, recorded in the sign-once ledger before it is signed;
only while the contract has not taken the evidence and the offender has something to lose, both
asked of the chain; only as a member of the epoch's frozen set.
"""

from __future__ import annotations

from emcd.accounting.offence import judged_rounds, slash_order
from emcd.errors import LocalProtocolError
from emcd.ledger import Connection, SignOnce, sign_once
from emcd.proto.eip712 import digest
from emcd.proto.messages import Slash
from emcd.types import Address
from emcd_validator.metrics import SLASHES
from emcd_validator.offence_chain import OffenceChain
from emcd_validator.queries.offences import (
    OffenceRow,
    OffenceState,
    SlashRow,
    insert_slash,
    list_offences,
    list_slashes,
    set_offence_state,
    set_slash_signature,
)
from emcd_validator.validator import Validator

PURPOSE = "validator.slash"


class SlashDesk:
    """The orders of one validator."""

    def __init__(self, validator: Validator, chain: OffenceChain) -> None:
        self._validator = validator
        self._chain = chain
        self._asked: dict[bytes, int] = {}
        """In which round the chain was asked about an offence: once in each is enough."""

    async def step(self) -> int:
        """Sign what is to be signed in the current epoch. Returns: how many orders are new.

        Raises: RecoverableError (the chain is away). Cancellation: an order may be recorded and not
        signed; the next step signs it.
        """
        validator = self._validator
        epoch = validator.params.epoch_of(validator.current_round())
        members = await self._chain.fetch_members(epoch) if epoch >= 0 else frozenset[Address]()
        me = validator.speaker(members)
        if me not in members:
            return 0
        await self._sign_recorded(epoch, me)
        signed = {row.slash.evidence_hash for row in await self._list(epoch)}
        count = 0
        for row in await self._list_due():
            state = await self._follow(row)
            if state is OffenceState.OPEN and row.evidence_hash not in signed:
                await self._order(slash_order(row.offence, epoch), me)
                count += 1
            self._asked[row.evidence_hash] = validator.current_round()
        return count

    async def _list_due(self) -> list[OffenceRow]:
        validator = self._validator
        first, current = judged_rounds(validator.params, validator.current_round())
        rows = await validator.read(lambda con: list_offences(con, validator.address, first))
        known = {row.evidence_hash for row in rows}
        self._asked = {key: index for key, index in self._asked.items() if key in known}
        return [
            row
            for row in rows
            if row.state is not OffenceState.SLASHED and self._asked.get(row.evidence_hash) != current
        ]

    async def _follow(self, row: OffenceRow) -> OffenceState:
        """What the chain says of the offence now; written down when it changed."""
        validator = self._validator
        state = await self._chain.fetch_state(row.offence, row.evidence_hash)
        if state is not row.state:
            await validator.write(
                lambda con: set_offence_state(con, validator.address, row.evidence_hash, state)
            )
            validator.log.info(
                "offence moved", state=state.value, offender=row.offence.offender, round=row.offence.round,
                evidence_hash="0x" + row.evidence_hash.hex(),
            )  # fmt: skip
        return state

    async def _order(self, order: Slash, me: Address) -> None:
        validator = self._validator
        hashed = digest(validator.domain, order)

        def record(con: Connection) -> SignOnce:
            slot = f"{order.epoch}:{order.evidence_hash.hex()}"
            outcome = sign_once(con, validator.address, PURPOSE, slot, hashed)
            if outcome is not SignOnce.CONFLICT:
                insert_slash(con, validator.address, order)
            return outcome

        if await validator.write(record) is SignOnce.CONFLICT:
            raise LocalProtocolError("EMC-1802", f"slash of {order.node} in epoch {order.epoch}")
        await self._sign(order, me)

    async def _sign_recorded(self, epoch: int, me: Address) -> None:
        for row in await self._list(epoch):
            if row.signature is None:
                await self._sign(row.slash, me)

    async def _sign(self, order: Slash, me: Address) -> None:
        validator = self._validator
        signature = validator.sign(me, validator.domain, order)
        await validator.write(lambda con: set_slash_signature(con, validator.address, order, signature))
        SLASHES.inc()
        validator.log.warning(
            "slash signed", offender=order.node, bps=order.bps, epoch=order.epoch,
            evidence_hash="0x" + order.evidence_hash.hex(),
        )  # fmt: skip

    async def _list(self, epoch: int) -> list[SlashRow]:
        validator = self._validator
        return await validator.read(lambda con: list_slashes(con, validator.address, epoch))
