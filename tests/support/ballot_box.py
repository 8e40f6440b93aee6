"""Probes, votes and rulings without calls and signatures: what is voted on, and by whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from emcd.accounting.probe_outcome import BackedProbe, ProbeOutcome
from emcd.accounting.ruling import Rulings, compute_rulings
from emcd.accounting.terms import RoundTerms
from emcd.proto.bundle import RevealEntry, VoteEntry
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.messages import Reveal, Verdict, Vote
from emcd.proto.params import ModelStanding, NetworkParams
from emcd.types import ZERO_HASH, Address
from tests.support.round_world import CHAIN_ID, MODEL_HASH, STAKING, address_of, edited, enforcing_params

ROUND = 7
NODE = address_of("node")
Ballots = Mapping[str, tuple[Verdict, int]]


def terms_of(
    powers: Mapping[str, int], *, standing: ModelStanding = ModelStanding.ENFORCED, **params: int
) -> RoundTerms:
    """Validators by name with their power."""
    numbers: NetworkParams = edited(enforcing_params(standing), **params)
    return RoundTerms(
        ROUND,
        address_of("hub"),
        Domain(CHAIN_ID, STAKING),
        keccak(b"beacon"),
        numbers,
        {},
        {address_of(name): power for name, power in powers.items()},
        {},
    )


def call_id(name: str) -> bytes:
    return keccak(b"call " + name.encode())[:16]


def probe_of(
    prober: str,
    verdict: Verdict,
    statistic_e12: int = 100,
    *,
    call: str = "call",
    node: Address = NODE,
    is_answered: bool = True,
) -> BackedProbe:
    return BackedProbe(
        address_of(prober),
        node,
        call_id(call),
        keccak(b"receipt"),
        MODEL_HASH,
        verdict,
        statistic_e12,
        True,
        is_answered,
    )


def votes_of(ballots: Ballots, call: str = "call") -> list[VoteEntry]:
    return [
        VoteEntry(
            Vote(address_of(name), ROUND, call_id(call), keccak(b"receipt"), int(verdict), statistic), b""
        )
        for name, (verdict, statistic) in ballots.items()
    ]


def unseen_of(names: Iterable[str], call: str = "call") -> list[VoteEntry]:
    """Votes of those to whom no evidence was shown."""
    return [
        VoteEntry(Vote(address_of(name), ROUND, call_id(call), ZERO_HASH, int(Verdict.ERROR), 0), b"")
        for name in names
    ]


def reveal_of(name: str) -> RevealEntry:
    seed = keccak(b"seed " + name.encode())
    return RevealEntry(Reveal(address_of(name), ROUND, seed, bytes(32), bytes(32), bytes(32)), b"", ())


def rule(
    terms: RoundTerms, probes: Sequence[BackedProbe], votes: Sequence[VoteEntry], reveals: Sequence[str] = ()
) -> Rulings:
    """Every probe was planned and done."""
    worked = Counter(probe.prober for probe in probes)
    ordered = tuple(sorted(probes, key=lambda probe: probe.call_id))
    outcome = ProbeOutcome(worked, Counter(worked), Counter(), Counter(), ordered)
    return compute_rulings(terms, outcome, [reveal_of(name) for name in reveals], votes)
