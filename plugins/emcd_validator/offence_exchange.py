"""What validators tell each other of offences: the attestations they hold, and proofs.

A validator that shows each asker another attestation is found by comparing what the askers hold.
Invariants: every peer in a task of its own with a deadline and a byte limit on each request, and one
deadline for all of a look; an attestation is held after its check, a proof after its judgement; of
one peer and look at most `MAX_FETCHED` proofs are fetched; a peer that lists what it can't prove is
not listened to for a while.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator
from functools import partial

import msgspec
import trio

from emcd.accounting.offence import OffenceKind, evidence_hash, judged_rounds, offence_of, read_proof
from emcd.errors import ProtocolError, RecoverableError, RemoteProtocolError
from emcd.net.ratelimit import FailureLimiter
from emcd.proto.address import hex_hash, parse_hash
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
FETCHERS = 4
"""Requests for proofs that one peer gets at a time."""
UNPROVEN = 8
"""What a peer may list in `UNPROVEN_ROUNDS` that it then does not prove; less is a clock or a pruning."""
UNPROVEN_ROUNDS = 4
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
        round_s = validator.params.round_s
        self._patience_s = min(30.0, max(2.0, round_s / 4))
        """For all of one look at one peer: less than the pause between two looks."""
        self._limiter = FailureLimiter(UNPROVEN, max(60.0, float(UNPROVEN_ROUNDS * round_s)))

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
        with trio.move_on_after(self._patience_s) as scope:
            try:
                await ask(peer, endpoint)
            except RecoverableError as exc:
                self._note_unreached(peer, exc)
            except ProtocolError as exc:
                self._note_fault(peer, exc)
        if scope.cancelled_caught:
            self._validator.log.debug("peer takes too long", peer=peer, patience_s=self._patience_s)

    def _note_unreached(self, peer: Address, exc: RecoverableError) -> None:
        self._validator.log.debug("peer not reached", peer=peer, code=exc.code, detail=exc.detail)

    def _note_fault(self, peer: Address, exc: ProtocolError) -> None:
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
        if not self._is_heard(peer):
            return
        page = await self._peers.find_page(endpoint, "offences", None)
        if page is None:
            return
        try:
            listed = msgspec.convert(page, _Offences).offences
        except msgspec.ValidationError as exc:
            raise RemoteProtocolError("EMC-1499", f"offences: {exc}") from exc
        known = await self._desk.list_known()
        first, last = judged_rounds(self._validator.params, self._validator.current_round())
        wanted = {
            identity: None
            for item in listed
            if item.kind not in _FROM_OWN_BUNDLES
            and first <= item.round <= last
            and (identity := parse_hash(item.hash)) not in known
        }
        left = iter(list(wanted)[:MAX_FETCHED])
        async with trio.open_nursery() as nursery:
            for _ in range(min(FETCHERS, len(wanted))):
                nursery.start_soon(self._fetch_proofs, peer, endpoint, left)

    async def _fetch_proofs(self, peer: Address, endpoint: str, left: Iterator[bytes]) -> None:
        """Fetch and judge what is left, until the peer is away or was caught too often."""
        for identity in left:
            if not self._is_heard(peer):
                return
            try:
                await self._fetch_proof(peer, endpoint, identity)
            except RecoverableError as exc:
                self._note_unreached(peer, exc)
                return
            except RemoteProtocolError as exc:
                self._limiter.add_failure(peer, trio.current_time())
                self._note_fault(peer, exc)

    async def _fetch_proof(self, peer: Address, endpoint: str, identity: bytes) -> None:
        page = await self._peers.find_page(endpoint, "offences", identity)
        if page is None:
            raise RemoteProtocolError("EMC-1980", f"{hex_hash(identity)} is listed and not served")
        proof = read_proof(page)
        if bytes(evidence_hash(offence_of(proof))) != identity:
            raise RemoteProtocolError("EMC-1980", f"the proof of {hex_hash(identity)} is of another deed")
        try:
            await self._desk.take(proof, peer)
        except RecoverableError as exc:  # it waits here, and holds up no other proof
            self._validator.log.debug("proof waits", code=exc.code, detail=exc.detail)

    def _is_heard(self, peer: Address) -> bool:
        return self._limiter.check_allowed(peer, trio.current_time())
