"""What an auditor knows apart from the bundle: the chain, and the last bundle that it accepted.

With nothing expected an audit says that a bundle agrees with itself; what its snapshot, beacon
and previous totals say of the world only the chain and the bundle before can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from emcd.accounting.consequence import Unequal, tell_participant, tell_total, tell_validator
from emcd.errors import RemoteProtocolError
from emcd.proto.address import address_bytes
from emcd.proto.bundle import BundleHeader, SnapshotEntry, Total, ValidatorPower
from emcd.proto.params import NetworkParams, PriceTable
from emcd.types import Address

CODE = "EMC-1906"
_HEADER_FIELDS = (
    "round", "hub", "chain_id", "staking", "distributor", "params", "snapshot_block", "snapshot_block_hash",
    "beacon_block", "beacon_block_hash", "previous_round", "previous_bundle_hash",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """Facts to compare a bundle with; None is not compared. Sequences may be in any order.

    `prices` are the tables until this round, `prices_from` the first round of each, both ascending: the
    bundle may leave out the oldest, for no call is that old, and no other. `settled_call_ids` are the calls
    of earlier bundles within `carry_rounds`: none of them is paid again.
    """

    bundle_hash: bytes | None = None
    round: int | None = None
    hub: Address | None = None
    chain_id: int | None = None
    staking: Address | None = None
    distributor: Address | None = None
    params: NetworkParams | None = None
    prices: tuple[PriceTable, ...] | None = None
    prices_from: tuple[int, ...] | None = None
    snapshot_block: int | None = None
    snapshot_block_hash: bytes | None = None
    beacon_block: int | None = None
    beacon_block_hash: bytes | None = None
    participants: Sequence[SnapshotEntry] | None = None
    validators: Sequence[ValidatorPower] | None = None
    previous_round: int | None = None
    previous_bundle_hash: bytes | None = None
    totals: Mapping[Address, int] | None = None
    settled_call_ids: Container[bytes] | None = None


def require_expected_header(expected: Expectation, header: BundleHeader) -> None:
    """Raises: RemoteProtocolError EMC-1906 naming the first field that differs."""
    for name in _HEADER_FIELDS:
        wanted, found = getattr(expected, name), getattr(header, name)
        if wanted is not None and wanted != found:
            raise RemoteProtocolError(CODE, f"{name} is {_shown(found)}, expected {_shown(wanted)}")
    _require_prices(expected, header)


def _require_prices(expected: Expectation, header: BundleHeader) -> None:
    if expected.prices is None:
        return
    for table in header.prices:
        if table not in expected.prices:
            raise RemoteProtocolError(CODE, f"price table {table.version} is not one in force")
    count = len(header.prices)
    if header.prices != expected.prices[-count:]:
        newest = expected.prices[-1].version
        raise RemoteProtocolError(CODE, f"the price tables up to {newest} are not all in the bundle")
    if expected.prices_from is not None and header.prices_from != expected.prices_from[-count:]:
        wanted = list(expected.prices_from[-count:])
        raise RemoteProtocolError(CODE, f"prices_from is {list(header.prices_from)}, expected {wanted}")


class ExpectedRecords:
    """Compares a section's records one by one with what is expected of them, by key."""

    def __init__(self, records: Mapping[Address, Any] | None, tell: Callable[[Any, Any], str]) -> None:
        """Args: `tell` says what it does when the first stands there and the second should; None for none."""
        self._left = None if records is None else dict(records)
        self._tell = tell

    def require(self, key: Address, record: msgspec.Struct) -> None:
        """Raises: RemoteProtocolError EMC-1906 when the record is another, or unexpected."""
        if self._left is None:
            return
        wanted = self._left.pop(key, None)
        if wanted is None:
            raise Unequal(CODE, "it is not in the auditor's own view", self._tell(record, None))
        if wanted != record:
            name = next(f for f in record.__struct_fields__ if getattr(wanted, f) != getattr(record, f))
            found, expected = getattr(record, name), getattr(wanted, name)
            detail = f"{name} is {_shown(found)}, expected {_shown(expected)}"
            raise Unequal(CODE, detail, self._tell(record, wanted))

    def require_complete(self) -> None:
        """Raises: RemoteProtocolError EMC-1906 when a record is missing."""
        if self._left:
            key = min(self._left, key=address_bytes)
            raise Unequal(CODE, f"{key} is missing", self._tell(None, self._left[key]))


def expected_participants(expected: Expectation) -> ExpectedRecords:
    rows = expected.participants
    return ExpectedRecords(None if rows is None else {row.node: row for row in rows}, tell_participant)


def expected_validators(expected: Expectation) -> ExpectedRecords:
    rows = expected.validators
    return ExpectedRecords(None if rows is None else {row.node: row for row in rows}, tell_validator)


def expected_totals(expected: Expectation) -> ExpectedRecords:
    rows = expected.totals
    if rows is None:
        return ExpectedRecords(None, tell_total)
    return ExpectedRecords(
        {wallet: Total(wallet, wei.to_bytes(32, "big")) for wallet, wei in rows.items() if wei}, tell_total
    )


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return "0x" + value.hex() if len(value) > 20 or any(value[:20]) else "0"
    return repr(value) if isinstance(value, str) else str(value)[:200]
