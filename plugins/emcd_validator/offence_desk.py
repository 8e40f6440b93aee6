"""Where offences are judged and kept: found here, told by peers, brought by anybody.

Invariants: nothing is kept that `check_offence` did not prove with what this validator knows by
itself; who is accused held its role in the very round under the very key that signed; a strike
convicts only when this validator signed its bundle and a root that covers it is active, so that
nobody can void it any more; the store is bounded, and the first proof stays.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import msgspec

from emcd.accounting.offence import (
    DoubleAttestation,
    DoubleResults,
    DoubleSeal,
    FalseVerdict,
    OffenceKind,
    OffenceTerms,
    Proof,
    SignedResults,
    SignedRoot,
    SignedSeal,
    SignedTask,
    SignedTaskResult,
    StandingStrike,
    check_offence,
    evidence_hash,
    judged_rounds,
    offence_of,
    write_proof,
)
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.proto.json_form import from_json
from emcd.proto.messages import Offence, RoundRoot, Task, Verdict
from emcd.types import Address
from emcd_validator.entry import read_results_data, read_task_result_data
from emcd_validator.events import OFFENCE, OffenceFound
from emcd_validator.false_verdict import FalseVerdictJudge
from emcd_validator.metrics import OFFENCES
from emcd_validator.offence_chain import OffenceChain
from emcd_validator.queries.offences import (
    Kept,
    insert_offence,
    list_covered_strikes,
    list_double_results,
    list_double_roots,
    list_double_seals,
    list_offences,
)
from emcd_validator.queries.tasks import list_passed_decoys
from emcd_validator.task_form import read_transcript
from emcd_validator.validator import Validator


class OffenceDesk:
    """The offences that one validator knows."""

    def __init__(self, validator: Validator, chain: OffenceChain, judge: FalseVerdictJudge) -> None:
        self._validator = validator
        self._judge = judge
        self._chain = chain
        self._told: set[bytes] = set()
        """Own evidence that led to nothing when it was last judged; told once."""

    async def take(self, proof: Proof, source: str = "") -> Kept:
        """Judge a proof, whoever brought it, and keep what it proves.

        Args: `source`: who brought it, as far as limits go; "" for what was found here.
        Raises: RemoteProtocolError EMC-1980 to 1985, 1990, 1991 (it proves nothing here),
        RecoverableError (the chain is away or not there yet, so who had a say is not known; what it
        takes a run of a model to judge can't be judged now).
        """
        validator = self._validator
        claimed = offence_of(proof)
        first, last = judged_rounds(validator.params, validator.current_round())
        if not first <= claimed.round <= last:
            raise RemoteProtocolError(
                "EMC-1984", f"round {claimed.round}; rounds {first} to {last} are judged"
            )
        terms = OffenceTerms(
            staking=validator.domain,
            distributor=validator.deployment.distributor_domain,
            hubs=(validator.hub, *({claimed.offender} if isinstance(proof, DoubleSeal) else ())),
            members=await self._members(proof, claimed.round),
            first_round=first,
            last_round=last,
            strikes=await self._list_strikes() if isinstance(proof, StandingStrike) else (),
        )
        if isinstance(proof, FalseVerdict):
            if bytes(evidence_hash(claimed)) in await self.list_known():
                return Kept.KNOWN
            terms = replace(terms, recomputed=await self._judge.recompute(terms, proof, source))
        return await self._keep(proof, terms)

    async def collect(self) -> int:
        """Look through what this validator has seen itself. Returns: how many offences are new.

        What can't be judged now waits for the next look and holds up nothing else.
        Raises: RecoverableError (the chain is away).
        """
        found: list[Proof] = [*await self._list_double_seals(), *await self._list_double_roots()]
        found += [*await self._list_double_results(), *await self._list_false_verdicts()]
        found += await self._list_strikes()
        known = await self.list_known()
        fresh = {bytes(evidence_hash(offence_of(proof))): proof for proof in found}
        count, failed = 0, set()
        for identity, proof in fresh.items():
            if identity in known:
                continue
            try:
                count += await self.take(proof) is Kept.NEW
            except (RemoteProtocolError, RecoverableError) as exc:
                failed.add(identity)
                if identity not in self._told:
                    waits = isinstance(exc, RecoverableError)
                    self._validator.log.warning(
                        "own evidence waits" if waits else "own evidence proves nothing",
                        code=exc.code,
                        detail=exc.detail,
                    )
        self._told = failed
        return count

    async def list_known(self) -> set[bytes]:
        """Hashes of the offences that are kept."""
        validator = self._validator
        rows = await validator.read(lambda con: list_offences(con, validator.address, 0))
        return {row.evidence_hash for row in rows}

    async def _keep(self, proof: Proof, terms: OffenceTerms) -> Kept:
        validator = self._validator
        offence = check_offence(terms, proof)
        if isinstance(proof, DoubleSeal):
            await self._require_hub(offence.offender, offence.round)
        identity = bytes(evidence_hash(offence))
        write = partial(
            insert_offence,
            instance=validator.address,
            evidence_hash=identity,
            offence=offence,
            proof=msgspec.json.encode(write_proof(proof)),
            now_ms=validator.now_ms(),
        )
        kept = await validator.write(write)
        if kept is Kept.NEW:
            kind = OffenceKind(offence.kind).name
            OFFENCES.labels(kind.lower()).inc()
            validator.log.error(
                "offence proven", code="EMC-1841", kind=kind, offender=offence.offender, round=offence.round,
                evidence_hash="0x" + identity.hex(),
            )  # fmt: skip
            validator.bus.publish(
                OFFENCE, OffenceFound(validator.address, kind, offence.offender, offence.round, identity)
            )
        return kept

    async def _require_hub(self, accused: Address, round_index: int) -> None:
        """The key of the network's hub in that round; asked of the chain when all else is proven."""
        if not await self._chain.is_hub_key(accused, self._validator.hub, round_index):
            raise RemoteProtocolError(
                "EMC-1983", f"{accused} is not the key of this network's hub in round {round_index}"
            )

    async def _members(self, proof: Proof, round_index: int) -> frozenset[Address]:
        if not isinstance(proof, DoubleAttestation | DoubleResults | FalseVerdict):
            return frozenset()
        return await self._chain.fetch_frozen(self._validator.params.epoch_of(round_index))

    async def _list_double_seals(self) -> list[Proof]:
        validator = self._validator
        first, _ = judged_rounds(validator.params, validator.current_round())
        pairs = await validator.read(
            lambda con: list_double_seals(con, validator.address, validator.hub, first)
        )
        return [DoubleSeal(SignedSeal(*one), SignedSeal(*other)) for one, other in pairs]

    async def _list_double_roots(self) -> list[Proof]:
        validator = self._validator
        first, _ = judged_rounds(validator.params, validator.current_round())
        found = await validator.read(lambda con: list_double_roots(con, validator.address, first))
        return [
            DoubleAttestation(author, _signed_root(*one), _signed_root(*other))
            for author, one, other in found
        ]

    async def _list_double_results(self) -> list[Proof]:
        validator = self._validator
        first, _ = judged_rounds(validator.params, validator.current_round())
        found = await validator.read(lambda con: list_double_results(con, validator.address, first))
        pairs = [(_signed_results(*one), _signed_results(*other)) for one, other in found]
        return [
            DoubleResults(one, other)
            for one, other in pairs
            if one.results.probes_hash != other.results.probes_hash
        ]

    async def _list_false_verdicts(self) -> list[Proof]:
        """Of each peer and round the first gross transcript of this validator that it passed."""
        validator = self._validator
        first, _ = judged_rounds(validator.params, validator.current_round())
        passed = await validator.read(
            lambda con: list_passed_decoys(con, validator.address, first, int(Verdict.PASS))
        )
        known = await self.list_known()
        proofs: dict[bytes, Proof] = {}
        for row, data, signature in passed:
            result = read_task_result_data(data)
            identity = bytes(evidence_hash(Offence(OffenceKind.FALSE_VERDICT, row.receiver, row.round)))
            if identity in known or identity in proofs:
                continue
            members = await self._chain.fetch_frozen(validator.params.epoch_of(row.round))
            me = validator.speaker(members)
            task = Task(me, row.receiver, row.round, row.task_hash)
            proofs[identity] = FalseVerdict(
                SignedTask(task, validator.sign(me, validator.domain, task)),
                SignedTaskResult(result, signature),
                read_transcript(row.transcript, row.task_hash),
            )
        return list(proofs.values())

    async def _list_strikes(self) -> list[StandingStrike]:
        """Convictions of bundles signed here, once a root over them is active with the same bundle."""
        validator = self._validator
        active = await self._chain.find_active_root()
        if active is None:
            return []
        first, _ = judged_rounds(validator.params, validator.current_round())
        strikes = await validator.read(
            lambda con: list_covered_strikes(con, validator.address, active.round, active.bundle_hash)
        )
        return [strike for strike in strikes if strike.round >= first]


def _signed_results(data: bytes, signature: bytes) -> SignedResults:
    return SignedResults(read_results_data(data), signature)


def _signed_root(data: bytes, signature: bytes) -> SignedRoot:
    return SignedRoot(from_json(RoundRoot, msgspec.json.decode(data)), signature)
