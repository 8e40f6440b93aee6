"""What validators tell each other of a round: commitments, reveals, evidence, votes.

Owns fetching them from the peers' endpoints, checking them, and voting on their strikes.
Invariants: one task, one deadline and one byte limit a peer, so that who stalls or lies holds up
nobody else; a statement is held only after its check; a vote is given on evidence that this
validator recomputed, never on a peer's word.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio

from emcd.accounting.terms import RoundTerms
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.proto.bundle import ProbeResult, RevealEntry, VoteEntry
from emcd.proto.eip712 import TypedStruct, digest
from emcd.proto.messages import Verdict, Vote
from emcd.types import Address
from emcd_validator.entry import Held, collect, commitment_item, reveal_item, vote_item
from emcd_validator.events import VERDICT, VerdictGiven
from emcd_validator.metrics import PEER_FAULTS, VERDICTS
from emcd_validator.peer_check import (
    CheckedStrike,
    check_commitment,
    check_evidence,
    check_reveal,
    check_seal,
    check_votes,
    list_strikes,
)
from emcd_validator.peer_client import PeerClient
from emcd_validator.queries.items import Held as HeldOutcome
from emcd_validator.queries.items import Item, Kind, hold_item, list_items
from emcd_validator.queries.rounds import list_probes
from emcd_validator.seal import keep_seal
from emcd_validator.signatory import issue
from emcd_validator.statement import (
    read_commitment,
    read_evidence,
    read_receipt,
    read_reveal,
    read_seals,
    read_votes,
)
from emcd_validator.validator import Validator
from emcd_validator.verdict_run import ReferenceRuns, judge_exchange
from emcd_validator.view import RoundView

_Step = Callable[[RoundView, RoundTerms, Address, str], Awaitable[bool]]


class Voter:
    """The exchange of one validator with its peers."""

    def __init__(
        self, validator: Validator, peers: PeerClient, references: Mapping[str, ReferenceRuns]
    ) -> None:
        self._validator = validator
        self._peers = peers
        self._references = references

    async def gather_commitments(self, view: RoundView) -> None:
        """During a round: fetch the peers' commitments until all are held or the round is over."""
        await self._ask_peers(view, self._fetch_commitment, self._validator.params.round_end_ms(view.round))

    async def run_grace(self, view: RoundView) -> None:
        """From the end of a round until votes are due: fetch reveals, judge strikes, fetch votes."""
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
            Kind.REVEAL: validator.vote_deadline_ms(round_index),
            Kind.VOTE: validator.vote_deadline_ms(round_index),
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
        """Receipt hash by call id of the strikes this validator knows the evidence of: own and voted on."""
        validator = self._validator
        struck = {
            call_id: entry.vote.receipt_hash
            for (call_id, author), entry in (await self.list_held(round_index)).votes.items()
            if author in validator.keys
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

    async def _exchange(self, view: RoundView, terms: RoundTerms, peer: Address, endpoint: str) -> bool:
        reveal = await self._ensure_reveal(view, terms, peer, endpoint)
        held = await self.list_held(view.round)
        me = self._validator.speaker(view.members)
        for probe in list_strikes(reveal) if reveal is not None else ():
            if reveal is not None and (probe.call_id, me) not in held.votes:
                await self._guard(peer, view.round, self._judge_strike(view, terms, reveal, probe, endpoint))
        await self._fetch_votes(view, terms, peer, endpoint)
        return False

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
        struck = await self.list_struck(view.round)
        if not struck:
            return
        page = await self._peers.find_page(endpoint, "votes", view.round)
        if page is None:
            return
        for entry in check_votes(terms, peer, read_votes(page), struck):
            await self._hold(vote_item(entry, self._validator.now_ms()), entry.vote)

    async def _judge_strike(
        self, view: RoundView, terms: RoundTerms, reveal: RevealEntry, probe: ProbeResult, endpoint: str
    ) -> bool:
        """Vote on a peer's strike. Returns: whether a vote was given."""
        validator = self._validator
        page = await self._peers.find_page(endpoint, "evidence", probe.call_id)
        if page is None:
            return False
        strike = check_evidence(terms, view.beacon_hash, reveal, probe, read_evidence(page), validator.models)
        vote = await self._judge(view, probe, strike)
        if validator.now_ms() >= validator.vote_deadline_ms(view.round):
            return False
        await issue(validator, vote_item(VoteEntry(vote, b""), validator.now_ms()))
        VERDICTS.labels("vote", Verdict(vote.verdict).name).inc()
        validator.bus.publish(
            VERDICT,
            VerdictGiven(
                validator.address,
                vote.round,
                probe.node,
                vote.call_id,
                Verdict(vote.verdict).name,
                vote.statistic_e12,
                True,
            ),
        )
        return True

    async def _judge(self, view: RoundView, probe: ProbeResult, strike: CheckedStrike) -> Vote:
        validator = self._validator
        judgement = await judge_exchange(
            validator.domain,
            validator.hub,
            strike.exchange,
            strike.leaf.texts,
            strike.model,
            self._references[strike.model.name],
        )
        if not judgement.verdict.is_strike:
            validator.log.warning(
                "a peer's strike is none",
                node=probe.node,
                verdict=judgement.verdict.name,
                reason=judgement.reason,
            )
        return Vote(
            validator.speaker(view.members),
            view.round,
            probe.call_id,
            strike.exchange.receipt.delivery.receipt_hash,
            int(judgement.verdict),
            judgement.statistic_e12,
        )

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
