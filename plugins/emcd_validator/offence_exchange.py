"""What validators tell each other of offences: the attestations they hold, and proofs.

A validator that shows each asker another attestation is found by comparing what the askers hold.
Invariants: every peer in a task of its own with a deadline and a byte limit on each request; an
attestation is held after its check, a proof after its judgement; of one peer and look at most
`MAX_FETCHED` proofs are fetched.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from functools import partial

import msgspec
import trio

from emcd.accounting.offence import OffenceKind, read_proof
from emcd.errors import ProtocolError, RecoverableError, RemoteProtocolError
from emcd.proto.address import parse_hash
from emcd.proto.eip712 import digest
from emcd.types import Address
from emcd_validator.entry import round_root_item
from emcd_validator.metrics import PEER_FAULTS
from emcd_validator.offence_chain import OffenceChain
from emcd_validator.offence_desk import OffenceDesk
from emcd_validator.peer_check import check_root
from emcd_validator.peer_client import PeerClient
from emcd_validator.queries.items import Held, hold_item
from emcd_validator.statement import read_roots
from emcd_validator.validator import Validator

MAX_FETCHED = 64
ROUNDS_COMPARED = 3
"""The newest closed rounds: attestations come within a round or two of the closing."""
_FROM_OWN_BUNDLES = (OffenceKind.GROSS, OffenceKind.CONVICTION)


class _Offence(msgspec.Struct, frozen=True):
    hash: str
    kind: int
    round: int


class _Offences(msgspec.Struct, frozen=True):
    offences: list[_Offence]


class OffenceExchange:
    """The comparison of one validator with its peers."""

    def __init__(
        self, validator: Validator, peers: PeerClient, chain: OffenceChain, desk: OffenceDesk
    ) -> None:
        self._validator = validator
        self._peers = peers
        self._chain = chain
        self._desk = desk

    async def step(self) -> None:
        """Ask every peer once. Raises: RecoverableError (the chain is away)."""
        validator = self._validator
        epoch = validator.params.epoch_of(max(0, validator.current_round()))
        endpoints = await self._chain.fetch_endpoints(epoch)
        async with trio.open_nursery() as nursery:
            for peer, endpoint in endpoints.items():
                if peer not in validator.keys:
                    nursery.start_soon(self._guard, peer, self._compare_roots, endpoint)
                    nursery.start_soon(self._guard, peer, self._fetch_offences, endpoint)

    async def _guard(
        self, peer: Address, ask: Callable[[Address, str], Awaitable[None]], endpoint: str
    ) -> None:
        try:
            await ask(peer, endpoint)
        except RecoverableError as exc:
            self._validator.log.debug("peer not reached", peer=peer, code=exc.code, detail=exc.detail)
        except ProtocolError as exc:
            PEER_FAULTS.labels(exc.code).inc()
            self._validator.log.warning("peer at fault", peer=peer, code=exc.code, detail=exc.detail)

    async def _compare_roots(self, peer: Address, endpoint: str) -> None:
        validator = self._validator
        newest = validator.current_round() - 2
        for index in range(max(0, newest - ROUNDS_COMPARED + 1), newest + 1):
            page = await self._peers.find_page(endpoint, "roots", index)
            if page is not None:
                members = await self._chain.fetch_members(validator.params.epoch_of(index))
                await self._hold_roots(peer, members, index, page)

    async def _hold_roots(
        self, peer: Address, members: Collection[Address], index: int, page: object
    ) -> None:
        validator = self._validator
        domain = validator.deployment.distributor_domain
        for author, root, signature in read_roots(page):
            if author in validator.keys:
                continue  # what an own key signed stands in its own ledger, or nowhere
            check_root(domain, members, index, author, root, signature)
            item = round_root_item(root, author, validator.now_ms(), signature)
            hold = partial(hold_item, instance=validator.address, item=item, digest=digest(domain, root))
            if await validator.write(hold) is Held.CONFLICT:
                validator.log.error(
                    "a validator attested twice", code="EMC-1817", peer=author, shown_by=peer, round=index
                )

    async def _fetch_offences(self, peer: Address, endpoint: str) -> None:
        """Take what the peer can prove and is not known here; strikes are found in one's own bundles."""
        page = await self._peers.find_page(endpoint, "offences", None)
        if page is None:
            return
        try:
            listed = msgspec.convert(page, _Offences).offences
        except msgspec.ValidationError as exc:
            raise RemoteProtocolError("EMC-1499", f"offences: {exc}") from exc
        known = await self._desk.list_known()
        wanted = [
            identity
            for item in listed
            if item.kind not in _FROM_OWN_BUNDLES and (identity := parse_hash(item.hash)) not in known
        ]
        for identity in wanted[:MAX_FETCHED]:
            proof = await self._peers.find_page(endpoint, "offences", identity)
            if proof is not None:
                await self._desk.take(read_proof(proof))
