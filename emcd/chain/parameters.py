"""The network's parameters as the chain has them: read, kept for a start without the chain, served.

Owns reading the versions of the parameters contract, and `ParameterKeeper`, what roles know as the
service `ParametersInForce`. Invariants: everything of one reading is read at one confirmed block; a
document counts by its hash in the contract, never by the word of who gave it; what was read is in
the ledger before anybody acts on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from emcd.chain.abi import DecodeError, decode_values
from emcd.chain.access import Chain
from emcd.chain.blocks import BlockRef
from emcd.chain.call import parse_log
from emcd.chain.proxies import Version
from emcd.clock import Clock
from emcd.errors import EmcdError, FatalError, RecoverableError
from emcd.proto.hashing import keccak
from emcd.proto.parameter_schedule import (
    KNOWN_AHEAD_EPOCHS,
    ParameterSchedule,
    PublishedVersion,
    build_schedule,
    first_schedule,
)
from emcd.proto.parameters import ParameterSet
from emcd.types import Address

EVENT = "ParametersChanged"
MAX_POLL_S = 60.0
POLLS_PER_ROUND = 4
REFRESH_TIMEOUT_S = 60.0
BAD_AFTER_FAILURES = 3


@dataclass(frozen=True)
class PublishedParameters:
    """Every version at a block, ascending, and the last epoch that no later block can change."""

    versions: tuple[PublishedVersion, ...]
    known_through_epoch: int


class ParameterStore(Protocol):
    """Where the last reading is kept; the ledger implements it."""

    async def load(self, contract: Address) -> tuple[Sequence[PublishedVersion], int] | None:
        """What was kept of a contract: its versions, and through which epoch they are final."""
        ...

    async def save(
        self, contract: Address, versions: Sequence[PublishedVersion], known_through_epoch: int
    ) -> None:
        """Keep a reading in place of the one before."""
        ...


async def fetch_published(
    chain: Chain, at: BlockRef | None = None, known: Sequence[PublishedVersion] = ()
) -> PublishedParameters:
    """Read the versions of the parameters contract.

    Args: `at` a block, else the newest confirmed one; `known` an earlier reading: what stands in it
        is not read again.
    Raises: RecoverableError EMC-150x when the chain can't be read or an answer makes no sense.
    """
    block = at or await chain.confirmed_head()
    clock = chain.deployment.params
    through = max(0, clock.epoch_of(clock.round_at(block.timestamp_s * 1000))) + KNOWN_AHEAD_EPOCHS
    count = await chain.parameters.fetch_version_count(at=block)
    newest = await chain.parameters.fetch_version(count, at=block)
    if known and len(known) == count and _is_same(known[-1], newest):
        return PublishedParameters(tuple(known), through)
    documents = {item.document_hash: item for item in known}
    versions = []
    for number in range(1, count + 1):
        found = newest if number == count else await chain.parameters.fetch_version(number, at=block)
        document = await _ensure_document(chain, found, documents)
        versions.append(
            PublishedVersion(
                number, found.from_epoch, found.block, found.rules_hash, found.document_hash, document
            )
        )
    return PublishedParameters(tuple(versions), through)


async def fetch_parameter_schedule(chain: Chain, at: BlockRef | None = None) -> ParameterSchedule:
    """The schedule at a block, else at the newest confirmed one.

    Raises: RecoverableError EMC-150x, FatalError EMC-1542 (the deployment file is another network's).
    """
    found = await fetch_published(chain, at)
    return build_schedule(_first(chain), found.versions, found.known_through_epoch)


class ParameterKeeper:
    """The parameters in force, followed as the chain moves. One a daemon."""

    def __init__(
        self, chain: Chain, store: ParameterStore, clock: Clock, log: structlog.stdlib.BoundLogger
    ) -> None:
        self._chain = chain
        self._store = store
        self._clock = clock
        self._log = log
        self._published: tuple[PublishedVersion, ...] = ()
        self._failures = 0
        self._failure = ""
        self._reading = trio.Lock()
        params, prices = chain.deployment.params, chain.deployment.prices
        self._schedule = first_schedule(params, prices)
        self._poll_s = max(chain.config.poll_s, min(MAX_POLL_S, params.round_s / POLLS_PER_ROUND))

    @property
    def schedule(self) -> ParameterSchedule:
        """What is known now."""
        return self._schedule

    @property
    def problem(self) -> str:
        """Why settling stops or will stop, or why the chain is not followed, for health."""
        params = self._chain.deployment.params
        trouble = self._schedule.find_trouble(params.round_at(self._clock.now_ms()))
        if not trouble and self._failures >= BAD_AFTER_FAILURES:
            return f"the network's parameters can't be read: {self._failure}"
        return trouble

    async def load(self) -> None:
        """Take up what an earlier run read. Raises: FatalError EMC-1542."""
        kept = await self._store.load(self._contract)
        if kept is not None:
            versions, through = kept
            self._schedule = build_schedule(_first(self._chain), versions, through)
            self._published = tuple(versions)

    async def refresh(self) -> None:
        """Read the chain now. Cancellation: what was read and not kept yet is read again.

        Raises: RecoverableError EMC-150x, FatalError EMC-1542.
        """
        async with self._reading:
            found = await fetch_published(self._chain, known=self._published)
            schedule = build_schedule(_first(self._chain), found.versions, found.known_through_epoch)
            if schedule != self._schedule or not self._published:
                await self._store.save(self._contract, found.versions, found.known_through_epoch)
                self._tell(schedule)
            self._published = found.versions
            self._schedule = schedule

    async def run(self) -> None:
        """Follow the chain until cancelled. Raises: FatalError EMC-1542."""
        while True:
            try:
                with trio.fail_after(REFRESH_TIMEOUT_S):
                    await self.refresh()
                self._failures = 0
            except FatalError:
                raise
            except (EmcdError, trio.TooSlowError) as exc:
                self._failures += 1
                self._failure = str(exc) or f"no answer within {REFRESH_TIMEOUT_S:.0f} s"
                if self._failures == BAD_AFTER_FAILURES:
                    self._log.warning("parameters_not_read", reason=self._failure)
            await trio.sleep(self._poll_s if not self._failures else self._chain.config.poll_s)

    @property
    def _contract(self) -> Address:
        return self._chain.deployment.parameters

    def _tell(self, schedule: ParameterSchedule) -> None:
        known = {version.number for version in self._schedule.versions}
        for version in schedule.versions:
            if version.number not in known:
                self._log.info(
                    "parameters_version", version=version.number, from_epoch=version.from_epoch,
                    prices=version.parameters.prices.version,
                )  # fmt: skip
        for gap in schedule.unreadable:
            if gap not in self._schedule.unreadable:
                self._log.error(
                    "parameters_unreadable", code="EMC-1540", version=gap.number,
                    from_epoch=gap.from_epoch, reason=gap.reason,
                )  # fmt: skip


def _first(chain: Chain) -> ParameterSet:
    return ParameterSet(chain.deployment.params, chain.deployment.prices)


def _is_same(known: PublishedVersion, found: Version) -> bool:
    kept = (known.from_epoch, known.block_number, known.rules_hash, known.document_hash)
    return kept == (found.from_epoch, found.block, found.rules_hash, found.document_hash)


async def _ensure_document(chain: Chain, version: Version, known: Mapping[bytes, PublishedVersion]) -> bytes:
    """A version's document: one that is known, or the one of its event."""
    wanted, number, block = version.document_hash, version.number, version.block
    if wanted in known:
        return known[wanted].document
    contract = chain.parameters
    raw = await chain.rpc.call(
        "eth_getLogs",
        {
            "fromBlock": hex(block),
            "toBlock": hex(block),
            "address": contract.address,
            "topics": ["0x" + contract.abi.event(EVENT).topic.hex(), f"0x{number:064x}"],
        },
    )
    try:
        documents = [decode_values(["bytes32", "bytes32", "bytes"], parse_log(log).data)[2] for log in raw]
    except (DecodeError, TypeError, KeyError, ValueError) as exc:
        raise RecoverableError("EMC-1507", f"the event of version {number} in block {block}: {exc}") from exc
    found = next((bytes(item) for item in documents if keccak(item) == wanted), None)
    if found is None:
        raise RecoverableError(
            "EMC-1507", f"block {block} has no event with the document of version {number} of the parameters"
        )
    return found
