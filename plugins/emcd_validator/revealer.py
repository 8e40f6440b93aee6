"""After a round: what came of every probe, signed while nobody's seed is known, then the opened plan. Each once."""

from __future__ import annotations

from emcd.accounting.plan import compute_probes_hash
from emcd.proto.bundle import RevealEntry
from emcd.proto.messages import Results, Reveal
from emcd_validator.entry import (
    ResultsEntry,
    read_results_item,
    read_reveal_item,
    results_item,
    reveal_item,
)
from emcd_validator.queries.items import Item, Kind
from emcd_validator.queries.rounds import find_round, list_probes
from emcd_validator.signatory import find_own, issue
from emcd_validator.validator import Validator


async def sign_results(validator: Validator, round_index: int) -> ResultsEntry | None:
    """Say what came of the probes of a round that is over and had a plan. Returns: None when there is nothing.

    A probe without a verdict is left out: it was not done. The first results stand, and the reveal
    will say the same, whatever is judged after them.
    """
    now_ms = validator.now_ms()
    if now_ms < validator.params.round_end_ms(round_index):
        return None
    known = await _find_signed(validator, Kind.RESULTS, round_index)
    if known is not None or now_ms >= validator.params.grace_end_ms(round_index):
        return None if known is None else read_results_item(known)
    row = await validator.read(lambda con: find_round(con, validator.address, round_index))
    plan = await find_own(validator, Kind.COMMITMENT, round_index)
    if row is None or row.beacon_hash is None or plan is None:
        return None
    rows = await validator.read(lambda con: list_probes(con, validator.address, round_index))
    probes = tuple(probe.result for probe in rows if probe.result is not None)
    results = Results(plan.author, round_index, compute_probes_hash(probes), now_ms)
    return read_results_item(await issue(validator, results_item(ResultsEntry(results, b"", probes), now_ms)))


async def reveal_round(validator: Validator, round_index: int) -> RevealEntry | None:
    """Open the plan of a round to its results. Returns: None when there is nothing to reveal, or not yet.

    The first reveal stands.
    """
    now_ms = validator.now_ms()
    if now_ms < validator.reveal_at_ms(round_index):
        return None
    known = await find_reveal(validator, round_index)
    if known is not None or now_ms >= validator.params.grace_end_ms(round_index):
        return known
    row = await validator.read(lambda con: find_round(con, validator.address, round_index))
    results = await sign_results(validator, round_index)
    if row is None or results is None:
        return None
    said = results.results
    reveal = Reveal(said.validator, round_index, row.seed, row.corpus_root, row.salt, said.probes_hash)
    entry = RevealEntry(reveal, b"", results.probes)
    return read_reveal_item(await issue(validator, reveal_item(entry, now_ms)))


async def find_reveal(validator: Validator, round_index: int) -> RevealEntry | None:
    """The own reveal of a round, once signed."""
    item = await _find_signed(validator, Kind.REVEAL, round_index)
    return None if item is None else read_reveal_item(item)


async def _find_signed(validator: Validator, kind: Kind, round_index: int) -> Item | None:
    item = await find_own(validator, kind, round_index)
    return item if item is not None and item.signature is not None else None
