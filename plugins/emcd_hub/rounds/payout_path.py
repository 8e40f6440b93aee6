"""From rows to the way of a request or a reward (`emcd.accounting.payout`). Reads, and computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

from emcd.accounting.payout import (
    EXTRACTION_ORDER,
    Back,
    Claimed,
    ExtractionFacts,
    ExtractionPath,
    ExtractionState,
    Note,
    Published,
    RewardPath,
    Submitted,
    WentBack,
    read_extraction,
    read_reward,
    require_extraction_move,
)
from emcd.ledger import Connection
from emcd.proto.address import hex_hash
from emcd.proto.json_form import to_json
from emcd.proto.settler_report import ReportKind, SettlerReport
from emcd.types import Address
from emcd_hub.rounds.bundle_row import ResultRow
from emcd_hub.rounds.chain_row import (
    ClaimRow,
    PublicationRow,
    is_publisher,
    list_claims,
    list_publications,
)
from emcd_hub.rounds.extraction_row import (
    ExtractionRow,
    clear_submitted,
    find_extraction,
    list_touched,
    set_back,
    set_note,
    set_submitted,
)

States = dict[tuple[Address, int], ExtractionState]


class Reported(Enum):
    """What came of a settler's report."""

    TAKEN = "taken"
    OLD = "old"
    NO_REQUEST = "no such request"
    NO_PUBLISHER = "not a publisher"


def read_paths(con: Connection, rows: Sequence[ExtractionRow], now_ms: int) -> list[ExtractionPath]:
    """The ways of these requests, in their order."""
    if not rows:
        return []
    least = min(row.extraction.through_round for row in rows)
    standing = [row for row in list_publications(con, least) if not row.is_void]
    claims = {wallet: list_claims(con, wallet) for wallet in {row.extraction.wallet for row in rows}}
    return [_path(con, row, standing, claims[row.extraction.wallet], now_ms) for row in rows]


def read_states(con: Connection, number: int, now_ms: int) -> States:
    """The states of all requests that are open, or ended in blocks above `number`."""
    rows = list_touched(con, number, now_ms)
    paths = read_paths(con, rows, now_ms)
    return {row.key: path.state for row, path in zip(rows, paths, strict=True)}


def note_moves_back(con: Connection, before: States, why: Back, now_ms: int) -> int:
    """Compare with the states of before, and note those that went back. Returns: how many.

    What was submitted counts no longer: the root it was to be paid from is not there.

    Raises: LocalProtocolError EMC-1791 when this move can't have brought a change about.
    """
    rows = [row for key in before if (row := find_extraction(con, *key)) is not None]
    after = {row.key: path.state for row, path in zip(rows, read_paths(con, rows, now_ms), strict=True)}
    moved: States = {}
    for key, state in before.items():
        now = after[key]
        require_extraction_move(state, now, why)
        if EXTRACTION_ORDER[now] < EXTRACTION_ORDER[state]:
            moved[key] = state
    lost = [key for key in moved if after[key] is not ExtractionState.SUBMITTED]
    clear_submitted(con, lost)
    set_back(con, moved, why, now_ms)
    return len(moved)


def take_report(con: Connection, report: SettlerReport, now_ms: int) -> Reported:
    """Keep a settler's word whose signature was checked; the newest of a request counts."""
    row = find_extraction(con, report.wallet, report.nonce)
    if row is None or row.state != "requested":
        return Reported.NO_REQUEST
    if not is_publisher(con, report.settler):
        return Reported.NO_PUBLISHER
    if report.reported_at_ms <= max(row.submitted_at_ms, row.note_at_ms):
        return Reported.OLD
    before = {row.key: read_paths(con, [row], now_ms)[0].state}
    if report.kind == ReportKind.SUBMITTED:
        set_submitted(con, row, report.tx_hash, report.settler, report.reported_at_ms)
    else:
        set_note(con, row, report.text, report.settler, report.reported_at_ms)
        note_moves_back(con, before, Back.CLAIM_FAILED, now_ms)
    return Reported.TAKEN


def show_publication(row: PublicationRow) -> Published:
    return Published(row.round, hex_hash(row.tx_hash), row.block, row.at_s, row.active_at_s)


def show_claim(row: ClaimRow) -> Claimed:
    return Claimed(hex_hash(row.tx_hash), row.block, row.at_s, str(row.amount_wei), row.recipient)


def make_reward_paths(
    results: Iterable[ResultRow],
    *,
    states: Mapping[int, str],
    payers: Mapping[int, PublicationRow],
    settled_at_ms: Mapping[int, int],
    claims: Sequence[ClaimRow],
    now_s: int,
) -> list[RewardPath]:
    """Each result with the publication that pays it and the first claim that took it.

    Args: `states` of rounds as `rounds.state.round_state` has them; `payers` the publication that
        pays each round, its own or a later one.
    """
    paths: list[RewardPath] = []
    for row in results:
        payer = payers.get(row.round)
        stands = payer is not None and not payer.is_void
        published = show_publication(payer) if payer is not None and stands else None
        claim = next((c for c in claims if payer is not None and stands and c.round >= payer.round), None)
        claimed = show_claim(claim) if claim is not None and row.reward_wei else None
        state = read_reward(
            is_void=states.get(row.round) == "void", published=published, claimed=claimed, now_s=now_s
        )
        paths.append(
            RewardPath(
                round=row.round,
                node=row.node,
                reward_wei=str(row.reward_wei),
                reason=row.entry.reason,
                state=state,
                settled_at_ms=settled_at_ms.get(row.round),
                published=published,
                claimable_from_s=None if published is None else published.active_at_s,
                claimed=claimed,
            )
        )
    return paths


def _path(
    con: Connection,
    row: ExtractionRow,
    standing: Sequence[PublicationRow],
    claims: Sequence[ClaimRow],
    now_ms: int,
) -> ExtractionPath:
    asked = row.extraction
    covering = [item for item in standing if item.round >= asked.through_round]
    first = min(covering, key=lambda item: (item.active_at_s, item.round), default=None)
    claim = next((item for item in claims if item.tx_hash == row.final_tx), None)
    facts = ExtractionFacts(
        deadline_s=asked.deadline,
        settled_at_ms=_find_settled(con, asked.through_round),
        published=None if first is None else show_publication(first),
        submitted=_submitted(row),
        claimed=None if claim is None else show_claim(claim),
        is_paid=row.state == "claimed",
        refused=row.reason if row.state == "refused" else "",
    )
    state = read_extraction(facts, now_ms // 1000)
    is_expired = state is ExtractionState.EXPIRED
    return ExtractionPath(
        id=row.request_id,
        wallet=asked.wallet,
        state=state,
        reason="the deadline has passed" if is_expired else row.reason,
        through_round=asked.through_round,
        requested_at_ms=row.requested_at_ms,
        settled_at_ms=facts.settled_at_ms,
        published=facts.published,
        synchronised_at_s=None if first is None else first.active_at_s,
        submitted=facts.submitted,
        claimed=facts.claimed,
        ended_at_ms=asked.deadline * 1000 if is_expired else row.ended_at_ms,
        note=Note(row.note_by, row.note, row.note_at_ms) if row.note and state.is_open else None,
        went_back=_went_back(row),
        extraction=to_json(asked),
        signature=hex_hash(row.signature),
    )


def _submitted(row: ExtractionRow) -> Submitted | None:
    if row.submitted_tx is None:
        return None
    return Submitted(hex_hash(row.submitted_tx), row.submitted_at_ms, row.submitted_by)


def _went_back(row: ExtractionRow) -> WentBack | None:
    if row.back_from is None or row.back_why is None:
        return None
    return WentBack(ExtractionState(row.back_from), Back(row.back_why), row.back_at_ms)


def _find_settled(con: Connection, index: int) -> int | None:
    """When the first bundle that covers a round was closed."""
    row = con.execute(
        "SELECT closed_at_ms FROM hub_bundles WHERE round >= ? ORDER BY round LIMIT 1", (index,)
    ).fetchone()
    return None if row is None else int(row[0])
