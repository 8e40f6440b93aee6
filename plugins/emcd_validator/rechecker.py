"""Judging anew what peers revealed: fetch the evidence, recompute, vote.

Invariants: a verdict on an answer is given on evidence that this validator recomputed, never on a
peer's word; where a prober shows no evidence that holds until it is due, the vote is ERROR, about no
receipt; one vote a call, on time or not at all; a validator whose own judge
was caught wrong votes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from emcd.accounting.terms import RoundTerms
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.proto.bundle import ProbeResult, RevealEntry, VoteEntry
from emcd.proto.messages import Verdict, Vote
from emcd.types import ZERO_HASH
from emcd_validator.entry import vote_item
from emcd_validator.events import VERDICT, VerdictGiven
from emcd_validator.judge import Exchange, Judgement
from emcd_validator.judge_ledger import keep_judgement
from emcd_validator.metrics import VERDICTS
from emcd_validator.peer_check import CheckedStrike, check_evidence
from emcd_validator.peer_client import PeerClient
from emcd_validator.signatory import issue
from emcd_validator.statement import read_evidence
from emcd_validator.validator import Validator
from emcd_validator.view import RoundView


class Judges(Protocol):
    """What is used of `Judge`. Raises: RecoverableError when it can't judge now."""

    async def judge_exchange(self, exchange: Exchange) -> Judgement: ...

    async def judge_transcript(
        self, model_hash: bytes, path: str, request_body: bytes, response_body: bytes, status: int = 200
    ) -> Judgement: ...


_NOT_JUDGED = "EMC-1815"
"""The model is none of this validator's: nothing is said of it then."""


@dataclass
class OwnJudge:
    """Whether this validator's judge may be believed: it has to know its own decoys as such."""

    complaint: str = ""
    muted: set[int] = field(default_factory=set)
    """The rounds in which it passed a decoy, and so votes nothing."""

    def note_passed(self, round_index: int, reason: str) -> None:
        """It called a decoy of its own validator a PASS."""
        self.muted.add(round_index)
        self.complaint = f"EMC-1866: {reason}"

    def note_right(self, round_index: int) -> None:
        """It knew the decoys of a later round."""
        if self.muted and round_index > max(self.muted):
            self.complaint = ""
        self.muted = {index for index in self.muted if index >= round_index - 2}


class Rechecker:
    """The votes of one validator."""

    def __init__(
        self,
        validator: Validator,
        peers: PeerClient,
        judge: Judges,
        own_judge: OwnJudge,
    ) -> None:
        self._validator = validator
        self._peers = peers
        self._judge = judge
        self._own_judge = own_judge

    async def vote(
        self, view: RoundView, terms: RoundTerms, reveal: RevealEntry, probe: ProbeResult, endpoint: str
    ) -> bool:
        """Vote on a peer's probe. Returns: whether a vote was given.

        Raises: RecoverableError (no evidence or no reference now), RemoteProtocolError (the evidence
        does not hold); while there is time left for it to come.
        """
        validator = self._validator
        if view.round in self._own_judge.muted:
            return False
        try:
            checked = await self._fetch(view, terms, reveal, probe, endpoint)
        except (RecoverableError, RemoteProtocolError) as exc:
            if exc.code == _NOT_JUDGED or validator.now_ms() < validator.evidence_due_ms(view.round):
                raise
            validator.log.warning(
                "no evidence", peer=reveal.reveal.validator, code=exc.code, detail=exc.detail
            )
            vote = self._make_vote(view, probe, ZERO_HASH, Verdict.ERROR, 0)
        else:
            vote = await self._recompute(view, probe, checked)
        is_late = validator.now_ms() >= validator.vote_deadline_ms(view.round)
        if is_late or view.round in self._own_judge.muted:
            return False
        await issue(validator, vote_item(VoteEntry(vote, b""), validator.now_ms()))
        self._tell(probe, vote)
        return True

    async def _fetch(
        self, view: RoundView, terms: RoundTerms, reveal: RevealEntry, probe: ProbeResult, endpoint: str
    ) -> CheckedStrike:
        page = await self._peers.find_page(endpoint, "evidence", probe.call_id)
        if page is None:
            raise RecoverableError("EMC-1865", f"{reveal.reveal.validator} serves none of this call")
        evidence = read_evidence(page)
        return check_evidence(terms, view.beacon_hash, reveal, probe, evidence, self._validator.models)

    async def _recompute(self, view: RoundView, probe: ProbeResult, checked: CheckedStrike) -> Vote:
        judgement = await self._judge.judge_exchange(checked.exchange)
        await keep_judgement(
            self._validator,
            judgement,
            round_index=view.round,
            part="vote" if Verdict(probe.verdict).is_strike else "recheck",
            node=probe.node,
            slot=probe.slot,
            call_id=probe.call_id,
            model_hash=checked.model.model_hash,
        )
        if judgement.verdict.is_strike is not Verdict(probe.verdict).is_strike:
            self._validator.log.warning(
                "a peer's verdict is another here",
                node=probe.node,
                said=Verdict(probe.verdict).name,
                verdict=judgement.verdict.name,
                reason=judgement.reason,
            )
        receipt_hash = checked.exchange.receipt.delivery.receipt_hash
        return self._make_vote(view, probe, receipt_hash, judgement.verdict, judgement.statistic_e12)

    def _make_vote(
        self, view: RoundView, probe: ProbeResult, receipt_hash: bytes, verdict: Verdict, statistic_e12: int
    ) -> Vote:
        me = self._validator.speaker(view.members)
        return Vote(me, view.round, probe.call_id, receipt_hash, int(verdict), statistic_e12)

    def _tell(self, probe: ProbeResult, vote: Vote) -> None:
        verdict = Verdict(vote.verdict).name
        VERDICTS.labels("vote" if Verdict(probe.verdict).is_strike else "recheck", verdict).inc()
        self._validator.bus.publish(
            VERDICT,
            VerdictGiven(
                self._validator.address,
                vote.round,
                probe.node,
                vote.call_id,
                verdict,
                vote.statistic_e12,
                True,
            ),
        )
