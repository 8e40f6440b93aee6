"""In which state a round is, and what of a wallet's rewards stands where. Pure. Source: DESIGN 2.1, 2.5."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from emcd.types import Address
from emcd_hub.rounds.bundle_row import BundleFacts
from emcd_hub.rounds.chain_row import PublicationRow


def round_state(
    index: int,
    current: int,
    facts: BundleFacts | None,
    publication: PublicationRow | None,
    *,
    is_attested: bool,
    now_s: int,
    void_after_rounds: int,
) -> str:
    """open | grace | closed | attested | published | active | void; "" for a round that is none of them."""
    if publication is not None:
        if publication.is_void:
            return "void"
        return "active" if now_s >= publication.active_at_s else "published"
    if facts is None:
        return "open" if index == current else "grace" if index in (current - 1, current - 2) else ""
    if current - 2 - index > void_after_rounds:
        return "void"
    return "attested" if is_attested else "closed"


def latest_publications(rows: Iterable[PublicationRow]) -> dict[int, PublicationRow]:
    """The newest publication of each round; rows are in the order of the chain."""
    return {row.round: row for row in rows}


def cover_rounds(
    closed: Mapping[int, BundleFacts], publications: Mapping[int, PublicationRow]
) -> dict[int, PublicationRow]:
    """The publication that pays each round: its own, or the first later one that builds on it.

    Totals are cumulative, so most rounds are never published themselves. A round published only
    to be voided is not among them.
    """
    covered: dict[int, PublicationRow] = {}
    for number in sorted(publications):
        index = number
        while not publications[number].is_void and index in closed and index not in covered:
            covered[index] = publications[number]
            index = closed[index].previous_round
    return covered


def find_tips(rows: Iterable[PublicationRow], now_s: int) -> tuple[int, int]:
    """(the newest published round that stands, the newest active one); -1 for none."""
    standing = [row for row in rows if not row.is_void]
    published = max((row.round for row in standing), default=-1)
    active = max((row.round for row in standing if now_s >= row.active_at_s), default=-1)
    return published, active


@dataclass(frozen=True)
class Stages:
    """A wallet's rewards by where they stand: every wei is in one stage only."""

    settled_wei: int
    published_wei: int
    claimable_wei: int
    claimed_wei: int

    @property
    def total_wei(self) -> int:
        return self.settled_wei + self.published_wei + self.claimable_wei + self.claimed_wei


def split_stages(
    wallet: Address,
    closed: Mapping[Address, int],
    published: Mapping[Address, int],
    active: Mapping[Address, int],
    claimed_wei: int,
) -> Stages:
    """Cut a wallet's cumulative totals of the newest closed, published and active round apart."""
    active_wei = max(active.get(wallet, 0), claimed_wei)
    published_wei = max(published.get(wallet, 0), active_wei)
    closed_wei = max(closed.get(wallet, 0), published_wei)
    return Stages(
        closed_wei - published_wei, published_wei - active_wei, active_wei - claimed_wei, claimed_wei
    )
