"""After a round: opening the commitment and saying what came of every probe. Once."""

from __future__ import annotations

from emcd.accounting.plan import compute_probes_hash
from emcd.proto.bundle import RevealEntry
from emcd.proto.messages import Reveal
from emcd_validator.entry import read_reveal_item, reveal_item
from emcd_validator.queries.items import Kind
from emcd_validator.queries.rounds import find_round, list_probes
from emcd_validator.signatory import find_own, issue
from emcd_validator.validator import Validator


async def reveal_round(validator: Validator, round_index: int) -> RevealEntry | None:
    """Reveal a round that is over and had a plan. Returns: None when there is nothing to reveal.

    A probe without a verdict is left out: it was not done. The first reveal stands.
    """
    now_ms = validator.now_ms()
    if now_ms < validator.params.round_end_ms(round_index):
        return None
    known = await find_reveal(validator, round_index)
    if known is not None or now_ms >= validator.params.grace_end_ms(round_index):
        return known
    row = await validator.read(lambda con: find_round(con, validator.address, round_index))
    plan = await find_own(validator, Kind.COMMITMENT, round_index)
    if row is None or row.beacon_hash is None or plan is None:
        return None
    rows = await validator.read(lambda con: list_probes(con, validator.address, round_index))
    probes = tuple(probe.result for probe in rows if probe.result is not None)
    reveal = Reveal(
        plan.author, round_index, row.seed, row.corpus_root, row.salt, compute_probes_hash(probes)
    )
    return read_reveal_item(await issue(validator, reveal_item(RevealEntry(reveal, b"", probes), now_ms)))


async def find_reveal(validator: Validator, round_index: int) -> RevealEntry | None:
    """The own reveal of a round, once signed."""
    item = await find_own(validator, Kind.REVEAL, round_index)
    return read_reveal_item(item) if item is not None and item.signature is not None else None
