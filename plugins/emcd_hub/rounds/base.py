"""On which closed round the next one builds. Pure.

Validators go by the same rule: a round stands until the chain voided it, or until nobody
published it for too long. One more is left out here: what more than 2/3 of the power has refused
to sign can never be published, and nobody who refused it builds on it. A round without a quorum
that builds on one that fell has fallen with it: else one lost round would be the end of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple

from emcd.proto.address import address_bytes
from emcd_hub.rounds.bundle_row import BundleFacts
from emcd_hub.rounds.chain_row import PublicationRow
from emcd_hub.rounds.view import RoundView


class Choice(NamedTuple):
    """`round` is -1 for the beginning; `abandoned` are the closed rounds passed over, newest first."""

    round: int
    abandoned: tuple[int, ...]


def choose_base(
    index: int,
    closed: Sequence[BundleFacts],
    publications: Mapping[int, PublicationRow],
    is_refused: Callable[[int], bool],
    is_attested: Callable[[int], bool],
    void_after_rounds: int,
) -> Choice:
    """Find the base of round `index`.

    Args:
        closed: the closed rounds below it, newest first.
        publications: the latest publication of a round, if there was one.
    """
    stands: dict[int, bool] = {}
    for facts in reversed(closed):
        publication = publications.get(facts.round)
        stands[facts.round] = not is_abandoned(index, facts, publication, is_refused, void_after_rounds) and (
            publication is not None or stands.get(facts.previous_round, True) or is_attested(facts.round)
        )
    fallen: list[int] = []
    for facts in closed:
        if stands[facts.round]:
            return Choice(facts.round, tuple(fallen))
        fallen.append(facts.round)
    return Choice(-1, tuple(fallen))


def is_abandoned(
    index: int,
    facts: BundleFacts,
    publication: PublicationRow | None,
    is_refused: Callable[[int], bool],
    void_after_rounds: int,
) -> bool:
    """Whether a closed round has come to nothing by the time of round `index`."""
    if publication is not None:
        return publication.is_void
    return index - facts.round > void_after_rounds or is_refused(facts.round)


def is_quorum(members: Set[bytes], view: RoundView) -> bool:
    """Whether these, by their 20 bytes, hold more than 2/3 of the round's frozen power."""
    powers = view.powers
    said_wei = sum(power for node, power in powers.items() if address_bytes(node) in members)
    return 3 * said_wei > 2 * sum(powers.values())
