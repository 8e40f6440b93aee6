"""What an auditor knows apart from the bundle: the chain, and the last bundle that it accepted.

With nothing expected an audit says that a bundle agrees with itself; what its snapshot, beacon
and previous totals say of the world only the chain and the bundle before can tell.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

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

    `prices` are the tables in force: the bundle may use no other. `settled_call_ids` are the calls
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
    for table in header.prices:
        if expected.prices is not None and table not in expected.prices:
            raise RemoteProtocolError(CODE, f"price table {table.version} is not one in force")


class ExpectedRecords:
    """Compares a section's records one by one with what is expected of them, by key."""

    def __init__(self, records: Mapping[Address, msgspec.Struct] | None) -> None:
        self._left = None if records is None else dict(records)

    def require(self, key: Address, record: msgspec.Struct) -> None:
        """Raises: RemoteProtocolError EMC-1906 when the record is another, or unexpected."""
        if self._left is None:
            return
        wanted = self._left.pop(key, None)
        if wanted is None:
            raise RemoteProtocolError(CODE, "it is not in the auditor's own view")
        if wanted != record:
            name = next(f for f in record.__struct_fields__ if getattr(wanted, f) != getattr(record, f))
            found, expected = getattr(record, name), getattr(wanted, name)
            raise RemoteProtocolError(CODE, f"{name} is {_shown(found)}, expected {_shown(expected)}")

    def require_complete(self) -> None:
        """Raises: RemoteProtocolError EMC-1906 when a record is missing."""
        if self._left:
            raise RemoteProtocolError(CODE, f"{min(self._left, key=address_bytes)} is missing")


def expected_participants(expected: Expectation) -> ExpectedRecords:
    rows = expected.participants
    return ExpectedRecords(None if rows is None else {row.node: row for row in rows})


def expected_validators(expected: Expectation) -> ExpectedRecords:
    rows = expected.validators
    return ExpectedRecords(None if rows is None else {row.node: row for row in rows})


def expected_totals(expected: Expectation) -> ExpectedRecords:
    rows = expected.totals
    if rows is None:
        return ExpectedRecords(None)
    return ExpectedRecords(
        {wallet: Total(wallet, wei.to_bytes(32, "big")) for wallet, wei in rows.items() if wei}
    )


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return "0x" + value.hex() if len(value) > 20 or any(value[:20]) else "0"
    return repr(value) if isinstance(value, str) else str(value)[:200]
