"""What every part of one validator shares: who it is, its network, ledger, clock and bus.

A validator may have several keys, for its hot key rotates at the start of an epoch: of a round it
speaks with the key that stands in the frozen set of the round's epoch, early and late. It holds no
state of a round: that stands in the ledger.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import trio

from emcd.bus import Bus
from emcd.clock import Clock
from emcd.errors import LocalProtocolError
from emcd.ledger import Connection, Ledger
from emcd.proto.eip712 import Domain, TypedStruct
from emcd.proto.network import Deployment
from emcd.proto.params import NetworkParams
from emcd.proto.signing import Signer
from emcd.services import ParametersInForce
from emcd.types import Address
from emcd_validator.model import JudgedModel

if TYPE_CHECKING:
    import structlog

T = TypeVar("T")
FetchMembers = Callable[[int], Awaitable[Collection[Address]]]
"""The validators of an epoch; of one that has not begun, those that it will have as things stand."""

_LONGEST_SLEEP_S = 5.0
"""The wall clock may be set while we sleep: look at it now and then."""


@dataclass(frozen=True, kw_only=True)
class Validator:
    """One validator's identity and surroundings.

    `instance` names its rows in the ledger where that is not the first key.
    """

    signer: Signer
    more_signers: tuple[Signer, ...] = ()
    instance: Address | None = None
    parameters: ParametersInForce
    fetch_members: FetchMembers
    hub: Address
    deployment: Deployment
    models: Mapping[str, JudgedModel]
    ledger: Ledger
    clock: Clock
    bus: Bus
    started_at_ms: int
    log: structlog.stdlib.BoundLogger

    @property
    def address(self) -> Address:
        """Names its rows in the ledger; for what it signs see `speaker`."""
        return self.instance or self.signer.address

    @property
    def keys(self) -> tuple[Address, ...]:
        """The addresses of its keys."""
        return (self.signer.address, *(signer.address for signer in self.more_signers))

    def speaker(self, members: Collection[Address]) -> Address:
        """Which of its keys speaks in a frozen set; the first when none is in it."""
        return next((key for key in self.keys if key in members), self.signer.address)

    async def find_speaker(self, round_index: int) -> Address:
        """The key for a round of which there is no view yet.

        Raises: RecoverableError when the chain is away; never with a single key.
        """
        if not self.more_signers:
            return self.signer.address
        return self.speaker(await self.fetch_members(self.params.epoch_of(round_index)))

    def sign(self, author: Address, domain: Domain, struct: TypedStruct) -> bytes:
        """Sign with one of its keys. Raises: LocalProtocolError EMC-1834 when it has not that key."""
        for signer in (self.signer, *self.more_signers):
            if signer.address == author:
                return signer.sign(domain, struct)
        raise LocalProtocolError("EMC-1834", f"key {author}")

    @property
    def params(self) -> NetworkParams:
        """The clock; what else is in force in a round is in `params_at`."""
        return self.deployment.params

    def params_at(self, round_index: int) -> NetworkParams:
        """The parameters of a round. Raises: RecoverableError EMC-1540, EMC-1541."""
        return self.parameters.schedule.params_at(round_index)

    def params_now(self) -> NetworkParams:
        """The newest parameters that can be read, for what is no matter of settling."""
        schedule = self.parameters.schedule
        return schedule.newest_readable_at(self.current_round()).parameters.params

    @property
    def domain(self) -> Domain:
        """Of records, statuses and verdicts."""
        return self.deployment.staking_domain

    @property
    def poll_s(self) -> float:
        """How often to ask for what may have come: thirty times a round, within 0.3 and 30 s."""
        return min(30.0, max(0.3, self.params.round_s / 30))

    def now_ms(self) -> int:
        return self.clock.now_ms()

    def current_round(self) -> int:
        return self.params.round_at(self.now_ms())

    def judging_end_ms(self, round_index: int) -> int:
        """Until when own probes are judged: 5 % of a round after its end, of a short one up to 12 %.

        What was asked at the last moment has to be answered, receipted and run again by then.
        """
        share_ms = max(self.params.round_s * 50, min(2000, self.params.round_s * 120))
        return self.params.round_end_ms(round_index) + share_ms

    def reveal_at_ms(self, round_index: int) -> int:
        """From when seeds are served, and evidence: 10 % of a round after its end, of a short one up to 20 %.

        Results come first, and every peer has to see them by then.
        """
        share_ms = max(self.params.round_s * 100, min(3500, self.params.round_s * 200))
        return self.params.round_end_ms(round_index) + share_ms

    def evidence_due_ms(self, round_index: int) -> int:
        """From when a prober that shows no evidence is said to: 65 % of a round after its end."""
        return self.params.round_end_ms(round_index) + self.params.round_s * 650

    def tasks_end_ms(self, round_index: int) -> int:
        """Until when peers answer tasks: 40 % of a round after its end. Then PASSes may be judged anew."""
        return self.params.round_end_ms(round_index) + self.params.round_s * 400

    def vote_deadline_ms(self, round_index: int) -> int:
        """Until when votes on a round are given, and what is held is expected in the bundle."""
        return self.params.grace_end_ms(round_index) - self._margin_ms

    def commitment_deadline_ms(self, round_index: int) -> int:
        """Until when a peer's commitment must be held to be expected in the bundle."""
        return self.params.round_end_ms(round_index) - self._margin_ms

    @property
    def _margin_ms(self) -> int:
        """15 % of a round: time for the hub to fetch what peers have."""
        return self.params.round_s * 150

    async def sleep_until(self, at_ms: int) -> None:
        """Sleep until the wall clock shows a time; at once when it has passed."""
        while (left_s := (at_ms - self.now_ms()) / 1000) > 0:  # noqa: ASYNC110 (a clock that may be set)
            await trio.sleep(min(left_s, _LONGEST_SLEEP_S))
        await trio.lowlevel.checkpoint()

    async def write(self, query: Callable[[Connection], T]) -> T:
        return await self.ledger.write(query)

    async def read(self, query: Callable[[Connection], T]) -> T:
        return await self.ledger.read(query)
