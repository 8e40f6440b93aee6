"""Judging accusations of a false verdict: the only offence whose proof has to be computed.

Invariants: nothing is computed before everything else about the proof is right, so only what one
member of a round's set signed to another costs anything; one at a time; a transcript that was found
not gross is remembered; who accuses wrongly is not heard for a while.
"""

from __future__ import annotations

from collections import OrderedDict

import trio

from emcd.accounting.offence import FalseVerdict, OffenceTerms, require_statement
from emcd.errors import RecoverableError
from emcd.net.ratelimit import FailureLimiter
from emcd.proto.messages import Verdict
from emcd_validator.rechecker import Judges

WRONG_ACCUSATIONS = 3
"""How many a member may bring in ten minutes that the own run does not confirm."""
_WINDOW_S = 600.0
_RUN_S = 120.0
_REMEMBERED = 1024


class FalseVerdictJudge:
    """Own runs of the transcripts of accusations."""

    def __init__(self, judge: Judges) -> None:
        self._judge = judge
        self._limiter = FailureLimiter(WRONG_ACCUSATIONS, _WINDOW_S)
        self._turn = trio.CapacityLimiter(1)
        self._found: OrderedDict[bytes, Verdict] = OrderedDict()

    async def recompute(self, terms: OffenceTerms, proof: FalseVerdict) -> Verdict:
        """The own verdict on the transcript of a proof.

        Raises: RemoteProtocolError EMC-1980 to 1983, EMC-1990 (the rest of it does not hold),
        RecoverableError EMC-1872 (its accuser is not heard now), or when this machine can't judge now.
        """
        await trio.to_thread.run_sync(require_statement, terms, proof)
        accuser, task_hash = proof.task.task.sender, proof.task.task.task_hash
        if task_hash in self._found:
            return self._found[task_hash]
        if not self._limiter.check_allowed(accuser, trio.current_time()):
            raise RecoverableError("EMC-1872", f"{accuser} accused wrongly, and too often")
        shown = proof.transcript
        with trio.move_on_after(_RUN_S) as scope:
            async with self._turn:
                judgement = await self._judge.judge_transcript(
                    shown.model_hash,
                    shown.request_path,
                    shown.request_body,
                    shown.response_body,
                    shown.status,
                )
        if scope.cancelled_caught:
            raise RecoverableError("EMC-1872", "its transcript takes too long to judge")
        if judgement.verdict is not Verdict.GROSS:
            self._limiter.add_failure(accuser, trio.current_time())
        self._found[task_hash] = judgement.verdict
        while len(self._found) > _REMEMBERED:
            self._found.popitem(last=False)
        return judgement.verdict
