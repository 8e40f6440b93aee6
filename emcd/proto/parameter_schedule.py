"""Which parameters are in force when: the versions of the chain, by epoch. Pure.

Invariants: a version is in force from its epoch's first round to the next version's; what nobody
here can read, or has not read yet, is an error and never a guess.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from emcd.errors import FatalError, RecoverableError, RemoteProtocolError
from emcd.proto.parameters import (
    ParameterSet,
    decode_document,
    document_hash,
    require_change,
    rules_hash,
    rules_of,
)
from emcd.proto.params import NetworkParams, PriceTable

KNOWN_AHEAD_EPOCHS = 1
"""A change takes force at the earliest in the second epoch after that of its transaction."""


@dataclass(frozen=True)
class PublishedVersion:
    """A version as the contract gives it, and the document of its event."""

    number: int
    from_epoch: int
    block_number: int
    rules_hash: bytes
    document_hash: bytes
    document: bytes


class PriceInForce(NamedTuple):
    """A price table and the first round in which calls that start are charged by it."""

    from_round: int
    table: PriceTable


@dataclass(frozen=True)
class ParameterVersion:
    """A version and the epoch from whose start it is in force. `block_number`: its transaction's."""

    number: int
    from_epoch: int
    parameters: ParameterSet
    block_number: int = 0


@dataclass(frozen=True)
class Unreadable:
    """A version that this program can't read: nothing is known from its epoch to the next version's."""

    number: int
    from_epoch: int
    reason: str


@dataclass(frozen=True)
class ParameterSchedule:
    """The versions that are known, by ascending epoch; the first is in force from the beginning.

    `known_through_epoch` is the last epoch that no later transaction can change. None: there is no
    chain that could bring a change.
    """

    versions: tuple[ParameterVersion, ...]
    known_through_epoch: int | None = None
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def newest(self) -> ParameterVersion:
        """The last version that can be read, in force or to come."""
        return self.versions[-1]

    def version_at(self, index: int) -> ParameterVersion:
        """The version in force in a round.

        Raises: RecoverableError EMC-1540 (this program can't read it), EMC-1541 (not known yet).
        """
        epoch = self._epoch_of(index)
        if self.known_through_epoch is not None and epoch > self.known_through_epoch:
            through = f"known are those through epoch {self.known_through_epoch}"
            raise RecoverableError("EMC-1541", f"parameters of round {index} in epoch {epoch}: {through}")
        return self.newest_known_at(index)

    def newest_known_at(self, index: int) -> ParameterVersion:
        """`version_at` for who can't wait: beyond what is known for sure, the newest that is known.

        Raises: RecoverableError EMC-1540.
        """
        epoch = self._epoch_of(index)
        found = self.newest_readable_at(index)
        for gap in reversed(self.unreadable):
            if found.from_epoch <= gap.from_epoch <= epoch:
                since = f"version {gap.number}, in force from epoch {gap.from_epoch}"
                raise RecoverableError("EMC-1540", f"{since}: {gap.reason}")
        return found

    def newest_readable_at(self, index: int) -> ParameterVersion:
        """The newest version that can be read and took force by then, whatever came after it."""
        known = bisect_right([version.from_epoch for version in self.versions], self._epoch_of(index))
        return self.versions[max(0, known - 1)]

    def params_at(self, index: int) -> NetworkParams:
        """The parameters of a round. Raises: as `version_at`."""
        return self.version_at(index).parameters.params

    def prices_at(self, index: int) -> PriceTable:
        """The price table for calls that start in a round. Raises: as `version_at`."""
        return self.version_at(index).parameters.prices

    def versions_for(self, rounds: Iterable[int]) -> tuple[ParameterVersion, ...]:
        """The versions in force in these rounds, ascending. Raises: as `version_at`."""
        found = {version.number: version for version in map(self.version_at, rounds)}
        return tuple(found[number] for number in sorted(found))

    def tables_for(self, first_round: int, last_round: int) -> tuple[PriceInForce, ...]:
        """The price tables in force from one round through another, ascending.

        Raises: as `version_at`, for the last round.
        """
        self.version_at(last_round)
        tables: list[PriceInForce] = []
        for version in self.versions:
            from_round = self.first_round(version)
            if from_round > last_round:
                break
            if not tables or tables[-1].table != version.parameters.prices:
                tables.append(PriceInForce(from_round, version.parameters.prices))
        skipped = bisect_right([item.from_round for item in tables], max(0, first_round)) - 1
        return tuple(tables[skipped:])

    def first_round(self, version: ParameterVersion) -> int:
        """The first round in which a version is in force."""
        return version.from_epoch * self.clock.epoch_rounds

    def find_trouble(self, index: int) -> str:
        """Why rounds from this one on will not or can't be settled here, for health; "" when all is well."""
        epoch = self._epoch_of(index)
        for gap in self.unreadable:
            after = [version.from_epoch for version in self.versions if version.from_epoch > gap.from_epoch]
            if not after or epoch < after[0]:
                return (
                    f"EMC-1540: version {gap.number} of the parameters, in force from epoch {gap.from_epoch},"
                    f" can't be read: update emcd ({gap.reason})"
                )
        if self.known_through_epoch is not None and epoch > self.known_through_epoch:
            return f"EMC-1541: the parameters of epoch {epoch} were not read from the chain"
        return ""

    @property
    def clock(self) -> NetworkParams:
        """The first version's: the clock is the same in all."""
        return self.versions[0].parameters.params

    def _epoch_of(self, index: int) -> int:
        return max(0, self.clock.epoch_of(index))


def single_schedule(params: NetworkParams, prices: PriceTable) -> ParameterSchedule:
    """One version for ever: a network without a chain."""
    return ParameterSchedule((ParameterVersion(params.version, 0, ParameterSet(params, prices)),))


def first_schedule(params: NetworkParams, prices: PriceTable) -> ParameterSchedule:
    """What is known of a chain that was never read: nothing changes in its first two epochs."""
    versions = single_schedule(params, prices).versions
    return ParameterSchedule(versions, KNOWN_AHEAD_EPOCHS)


def build_schedule(
    first: ParameterSet, published: Sequence[PublishedVersion], known_through_epoch: int
) -> ParameterSchedule:
    """The schedule of what the contract published.

    Args: `first` is the deployment file's; `published` every version, ascending from 1.
    Raises: FatalError EMC-1542 when version 1 is not the deployment file's.
    """
    versions = [ParameterVersion(1, 0, first, published[0].block_number if published else 0)]
    unreadable: list[Unreadable] = []
    for item in published:
        try:
            found = _read(item)
            if item.number == 1:
                if found != first:
                    raise FatalError("EMC-1542", "version 1 of the chain is not the deployment file's")
                continue
            require_change(versions[-1].parameters, found, item.number)
        except RemoteProtocolError as exc:
            if item.number == 1:
                raise FatalError("EMC-1542", f"version 1 of the chain can't be read: {exc.detail}") from exc
            unreadable.append(Unreadable(item.number, item.from_epoch, f"{exc.code}: {exc.detail}"))
        else:
            versions.append(ParameterVersion(item.number, item.from_epoch, found, item.block_number))
    return ParameterSchedule(tuple(versions), known_through_epoch, tuple(unreadable))


def _read(item: PublishedVersion) -> ParameterSet:
    """Raises: RemoteProtocolError EMC-1470 to EMC-1472, EMC-1475."""
    found = decode_document(item.document)
    if document_hash(item.document) != item.document_hash:
        raise RemoteProtocolError("EMC-1475", "the document is not the one that was signed")
    if rules_hash(rules_of(found.params)) != item.rules_hash:
        raise RemoteProtocolError("EMC-1475", "the contract enforces other rules than the document says")
    return found
