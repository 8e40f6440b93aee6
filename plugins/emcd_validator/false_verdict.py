"""Judging accusations of a false verdict: the only offence whose proof has to be computed.

Invariants: nothing is computed before everything else about the proof is right, so only what one
member of a round's set signed to another costs anything; one at a time; what a transcript was found to be
is remembered; whoever brings wrong accusations is not heard for a while, and nobody else is charged. Only
the distance of an answer's numbers convicts: which tokens a sampler may draw can hang on a place at the
edge of top-p or top-k, where two honest machines are a whole step of m and w apart.
"""

from __future__ import annotations

from collections import OrderedDict

import trio

from emcd.accounting.offence import FalseVerdict, OffenceTerms, require_statement
from emcd.accounting.verdict import GROSS_FACTOR, SPREAD_FACTOR
from emcd.errors import RecoverableError
from emcd.net.ratelimit import FailureLimiter
from emcd.proto.messages import Verdict
from emcd_validator.judge import Judgement
from emcd_validator.rechecker import Judges

WRONG_ACCUSATIONS = 3
"""How many one source may bring in ten minutes that the own run does not confirm."""
_WINDOW_S = 600.0
_RUN_S = 120.0
_REMEMBERED = 1024
_DISTANCES = ("d", "first", "l2")
"""Statistics of numbers against numbers: honest machines are never factors apart in them."""


def is_gross_by_distance(judgement: Judgement) -> bool:
    """Whether no honest machine can have called the answer a PASS."""
    numbers = judgement.numbers
    if judgement.verdict is not Verdict.GROSS or numbers is None:
        return False
    return any(
        numbers.values[name]
        >= GROSS_FACTOR * max(1, numbers.taus[name], SPREAD_FACTOR * numbers.spreads.get(name, 0))
        for name in _DISTANCES
        if name in numbers.values and name in numbers.taus
    )


class FalseVerdictJudge:
    """Own runs of the transcripts of accusations."""

    def __init__(self, judge: Judges) -> None:
        self._judge = judge
        self._limiter = FailureLimiter(WRONG_ACCUSATIONS, _WINDOW_S)
        self._turn = trio.CapacityLimiter(1)
        self._found: OrderedDict[bytes, Verdict] = OrderedDict()

    async def recompute(self, terms: OffenceTerms, proof: FalseVerdict, source: str) -> Verdict:
        """The own verdict on the transcript of a proof; GROSS only if by distance, else FAIL.

        Args: `source`: who brought the proof, and pays for it if it proves nothing.
        Raises: RemoteProtocolError EMC-1980 to 1983, EMC-1990 (the rest of it does not hold),
        RecoverableError EMC-1872 (its source is not heard now), or when this machine can't judge now.
        """
        await trio.to_thread.run_sync(require_statement, terms, proof)
        with trio.move_on_after(_RUN_S) as scope:
            found = self._find(proof, source)
            if found is None:
                async with self._turn:
                    found = self._find(proof, source)
                    if found is None:
                        found = await self._run(proof, source)
        if scope.cancelled_caught or found is None:
            raise RecoverableError("EMC-1872", "its transcript takes too long to judge")
        return found

    def _find(self, proof: FalseVerdict, source: str) -> Verdict | None:
        """What the transcript was found to be. Raises: RecoverableError EMC-1872 where its source can't ask."""
        found = self._found.get(proof.task.task.task_hash)
        if found is None and not self._limiter.check_allowed(source, trio.current_time()):
            raise RecoverableError("EMC-1872", f"{source or 'this source'} accused wrongly, and too often")
        return found

    async def _run(self, proof: FalseVerdict, source: str) -> Verdict:
        shown = proof.transcript
        judgement = await self._judge.judge_transcript(
            shown.model_hash, shown.request_path, shown.request_body, shown.response_body, shown.status
        )
        verdict = judgement.verdict
        if not is_gross_by_distance(judgement):
            verdict = Verdict.FAIL if verdict is Verdict.GROSS else verdict
            self._limiter.add_failure(source, trio.current_time())
        self._found[proof.task.task.task_hash] = verdict
        while len(self._found) > _REMEMBERED:
            self._found.popitem(last=False)
        return verdict
