"""What validators tell each other of a round: commitments, results, reveals, votes.

Owns fetching them from the peers' endpoints, checking and holding them. Results are asked for before
anybody serves a seed, reveals after that, and then what is to be judged anew goes to `Rechecker`.
Invariants: one task, one deadline and one byte limit a peer, so that who stalls or lies holds up
nobody else; a statement is held only after its check.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from emcd.accounting.recheck import is_recheck
from emcd.accounting.terms import RoundTerms
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.proto.bundle import RevealEntry
from emcd.proto.eip712 import TypedStruct, digest
from emcd.proto.messages import Verdict
from emcd.types import ZERO_HASH, Address
from emcd_validator.duty import is_mistrusted, list_accused, list_duties, list_votable
from emcd_validator.entry import Held, collect, commitment_item, results_item, reveal_item, vote_item
from emcd_validator.metrics import PEER_FAULTS
from emcd_validator.peer_check import (
    check_commitment,
    check_results,
    check_reveal,
    check_seal,
    check_votes,
)
from emcd_validator.peer_client import PeerClient
from emcd_validator.queries.items import Held as HeldOutcome
from emcd_validator.queries.items import Item, Kind, hold_item, list_items
from emcd_validator.queries.rounds import list_probes
from emcd_validator.rechecker import Judges, OwnJudge, Rechecker
from emcd_validator.seal import keep_seal
from emcd_validator.statement import (
    read_commitment,
    read_receipt,
    read_results,
    read_reveal,
    read_seals,
    read_votes,
)
from emcd_validator.validator import Validator
from emcd_validator.view import RoundView

_Step = Callable[[RoundView, RoundTerms, Address, str], Awaitable[bool]]


class Voter:
    """The exchange of one validator with its peers."""

    def __init__(self, validator: Validator, peers: PeerClient, judge: Judges) -> None:
        self._validator = validator
        self._peers = peers
        self.own_judge = OwnJudge()
        self._rechecker = Rechecker(validator, peers, judge, self.own_judge)

    async def gather_commitments(self, view: RoundView) -> None:
        """During a round: fetch the peers' commitments until all are held or the round is over."""
        await self._ask_peers(view, self._fetch_commitment, self._validator.params.round_end_ms(view.round))

    async def gather_results(self, view: RoundView) -> None:
        """After a round, before any seed is served: fetch the peers' results."""
        await self._ask_peers(view, self._fetch_own_results, self._validator.reveal_at_ms(view.round))

    async def run_grace(self, view: RoundView) -> None:
        """From the end of a round until votes are due: fetch reveals, judge what is due, fetch votes."""
        await self._ask_peers(view, self._exchange, self._validator.vote_deadline_ms(view.round))

    async def gather_seals(self, view: RoundView) -> None:
        """After a round closed: see whether the hub sealed the same bundle for every peer."""
        until_ms = self._validator.params.grace_end_ms(view.round) + self._validator.params.round_s * 500
        await self._ask_peers(view, self._fetch_seals, until_ms)

    async def list_held(self, round_index: int, *, in_time: bool = False) -> Held:
        """What is held of a round; `in_time`: only what the hub must have too.

        It must have what this validator held and served before the deadline of its kind.
        """
        validator = self._validator
        items = await validator.read(lambda con: list_items(con, validator.address, round_index))
        due_ms = {
            Kind.COMMITMENT: validator.commitment_deadline_ms(round_index),
            Kind.RESULTS: validator.reveal_at_ms(round_index),
            Kind.REVEAL: validator.vote_deadline_ms(round_index),
            Kind.VOTE: validator.vote_deadline_ms(round_index),
            Kind.TASK_RESULT: 0,
            Kind.ROUND_ROOT: 0,
        }
        return collect(
            item
            for item in items
            if not in_time or max(item.held_at_ms, validator.started_at_ms) < due_ms[item.kind]
        )

    async def list_own(self, round_index: int) -> Held:
        """Own statements about a round."""
        validator = self._validator
        items = await validator.read(lambda con: list_items(con, validator.address, round_index))
        return collect(item for item in items if item.author in validator.keys)

    async def list_struck(self, round_index: int) -> dict[bytes, bytes]:
        """Receipt hash by call id of what this validator knows the evidence of: own strikes, all voted on."""
        validator = self._validator
        struck = {
            call_id: entry.vote.receipt_hash
            for (call_id, author), entry in (await self.list_held(round_index)).votes.items()
            if author in validator.keys and entry.vote.receipt_hash != ZERO_HASH
        }
        for probe in await validator.read(lambda con: list_probes(con, validator.address, round_index)):
            if probe.result is not None and Verdict(probe.result.verdict).is_strike:
                delivery = read_receipt(probe.receipt).delivery
                if delivery.round == round_index:
                    struck[probe.result.call_id] = delivery.receipt_hash
        return struck

    async def _ask_peers(self, view: RoundView, step: _Step, until_ms: int) -> None:
        """Repeat a step for every peer, each in its own task, until it is done or the time is up."""
        validator = self._validator
        terms = view.terms(validator.params_at(view.round), validator.domain, validator.hub)

        async def repeat(peer: Address, endpoint: str) -> None:
            while validator.now_ms() < until_ms:
                if await self._guard(peer, view.round, step(view, terms, peer, endpoint)):
                    return
                await trio.sleep(validator.poll_s)

        with trio.move_on_after(max(0.0, (until_ms - validator.now_ms()) / 1000)):
            async with trio.open_nursery() as nursery:
                for peer, endpoint in view.endpoints.items():
                    if peer not in validator.keys:
                        nursery.start_soon(repeat, peer, endpoint)

    async def _guard(self, peer: Address, round_index: int, step: Awaitable[bool]) -> bool:
        """Await a step; a peer's fault or silence is written down and ends the step alone."""
        validator = self._validator
        try:
            return await step
        except RecoverableError as exc:
            validator.log.debug("peer not reached", peer=peer, code=exc.code, detail=exc.detail)
        except RemoteProtocolError as exc:
            PEER_FAULTS.labels(exc.code).inc()
            validator.log.warning(
                "peer at fault", peer=peer, round=round_index, code=exc.code, detail=exc.detail
            )
        return False

    async def _fetch_commitment(
        self, view: RoundView, terms: RoundTerms, peer: Address, endpoint: str
    ) -> bool:
        page = await self._peers.find_page(endpoint, "commitments", view.round)
        if page is None:
            return False
        entry = check_commitment(terms, peer, read_commitment(page))
        await self._hold(commitment_item(entry, self._validator.now_ms()), entry.commitment)
        return True

    async def _fetch_seals(self, view: RoundView, terms: RoundTerms, peer: Address, endpoint: str) -> bool:
        page = await self._peers.find_page(endpoint, "seals", view.round)
        seals = read_seals(page) if page is not None else ()
        for seal, signature in seals:
            check_seal(terms, seal, signature)
            await keep_seal(self._validator, view.round, seal.bundle_hash, signature)
        return bool(seals)

    async def _fetch_own_results(
        self, view: RoundView, terms: RoundTerms, peer: Address, endpoint: str
    ) -> bool:
        """Take the results that a peer serves, its own and those it holds. Returns: whether its own came."""
        page = await self._peers.find_page(endpoint, "results", view.round)
        if page is None:
            return False
        own = False
        for entry in read_results(page):
            if entry.results.validator in self._validator.keys:
                continue  # what an own key signed stands in the own ledger, or nowhere
            check_results(terms, entry)
            await self._hold(results_item(entry, self._validator.now_ms()), entry.results)
            own = own or entry.results.validator == peer
        return own

    async def _exchange(self, view: RoundView, terms: RoundTerms, peer: Address, endpoint: str) -> bool:
        await self._guard(peer, view.round, self._fetch_own_results(view, terms, peer, endpoint))
        reveal = await self._ensure_reveal(view, terms, peer, endpoint)
        if reveal is not None:
            await self._judge_due(view, terms, reveal, endpoint)
        await self._fetch_votes(view, terms, peer, endpoint)
        return False

    async def _judge_due(
        self, view: RoundView, terms: RoundTerms, reveal: RevealEntry, endpoint: str
    ) -> None:
        """Vote on the peer's probes that are to be judged anew, those without a vote yet."""
        held = await self.list_held(view.round)
        me, peer = self._validator.speaker(view.members), reveal.reveal.validator
        mistrusted = is_mistrusted(held, reveal, self._validator.reveal_at_ms(view.round))
        own = held.reveals.get(me)

        def is_drawn(call_id: bytes) -> bool:
            return own is not None and is_recheck(
                own.reveal.seed, call_id, me, peer, terms.powers, terms.params
            )

        duties = list_duties(reveal, accused=list_accused(held), is_drawn=is_drawn, judges_all=mistrusted)
        may_ask_all = self._validator.now_ms() >= self._validator.tasks_end_ms(view.round)
        for probe in duties:
            if not may_ask_all and not Verdict(probe.verdict).is_strike:
                continue  # evidence of what passed is not shown yet
            if (probe.call_id, me) not in held.votes:
                vote = self._rechecker.vote(view, terms, reveal, probe, endpoint)
                await self._guard(peer, view.round, vote)

    async def _ensure_reveal(
        self, view: RoundView, terms: RoundTerms, peer: Address, endpoint: str
    ) -> RevealEntry | None:
        held = await self.list_held(view.round)
        if peer in held.reveals:
            return held.reveals[peer]
        if peer not in held.commitments:
            await self._fetch_commitment(view, terms, peer, endpoint)
            held = await self.list_held(view.round)
        page = await self._peers.find_page(endpoint, "reveals", view.round)
        if page is None:
            return None
        reveal = check_reveal(terms, peer, read_reveal(page), held.commitments.get(peer))
        await self._hold(reveal_item(reveal, self._validator.now_ms()), reveal.reveal)
        return reveal

    async def _fetch_votes(self, view: RoundView, terms: RoundTerms, peer: Address, endpoint: str) -> None:
        votable = list_votable(await self.list_held(view.round))
        if not votable:
            return
        struck = await self.list_struck(view.round)
        page = await self._peers.find_page(endpoint, "votes", view.round)
        if page is None:
            return
        for entry in check_votes(terms, peer, read_votes(page), votable, struck):
            await self._hold(vote_item(entry, self._validator.now_ms()), entry.vote)

    async def _hold(self, item: Item, struct: TypedStruct) -> None:
        validator = self._validator
        hashed = digest(validator.domain, struct)
        outcome = await validator.write(lambda con: hold_item(con, validator.address, item, hashed))
        if outcome is HeldOutcome.CONFLICT:
            validator.log.error(
                "a peer signed two statements",
                code="EMC-1817",
                peer=item.author,
                kind=item.kind.value,
                round=item.round,
            )
