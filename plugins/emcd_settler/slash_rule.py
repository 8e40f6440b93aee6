"""Orders to slash: read, checked, and grouped until one has its quorum. Pure.

Invariants: an order counts for the epoch it names and the validator that serves it, once; what the
contract would refuse whatever is signed (no share, more than half) is not an order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from emcd.errors import ProtocolError, RemoteProtocolError
from emcd.proto.eip712 import Domain
from emcd.proto.json_form import from_json
from emcd.proto.messages import Slash
from emcd.proto.signing import require_signer
from emcd.types import Address

CODE = "EMC-1975"
MAX_ORDERS = 8_192
MAX_SLASH_BPS = 5_000


@dataclass(frozen=True)
class SignedSlash:
    """One validator's order, its signature checked."""

    validator: Address
    order: Slash
    signature: bytes


@dataclass(frozen=True)
class OrderQuorum:
    """An order with the signatures of more than 2/3 of its epoch's power."""

    order: Slash
    signatures: dict[Address, bytes]


class _Item(msgspec.Struct, frozen=True):
    slash: dict[str, object]
    signature: str


class _Page(msgspec.Struct, frozen=True):
    slashes: list[_Item]


def read_slashes(
    domain: Domain, body: bytes, epoch: int, validator: Address, known: Iterable[SignedSlash] = ()
) -> list[SignedSlash]:
    """Read what a validator's endpoint answered for an epoch.

    Args: `known`: orders of this validator that were checked before, and need not be again.
    Raises: RemoteProtocolError EMC-1975 (no page, or one with an order that is not its own).
    """
    try:
        items = msgspec.json.decode(body, type=_Page).slashes
        if len(items) > MAX_ORDERS:
            raise RemoteProtocolError(CODE, f"{len(items)} orders")
        before = {(item.order, item.signature): item for item in known}
        return [_read(domain, item, epoch, validator, before) for item in items]
    except ProtocolError as exc:
        raise RemoteProtocolError(CODE, f"{validator}, epoch {epoch}: {exc.detail}") from exc
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError(CODE, f"{validator}, epoch {epoch}: {exc}") from exc


def _read(
    domain: Domain,
    item: _Item,
    epoch: int,
    validator: Address,
    known: Mapping[tuple[Slash, bytes], SignedSlash],
) -> SignedSlash:
    order = from_json(Slash, item.slash)
    signature = bytes.fromhex(item.signature.removeprefix("0x"))
    if (found := known.get((order, signature))) is not None:
        return found
    if order.epoch != epoch or not 0 < order.bps <= MAX_SLASH_BPS:
        raise RemoteProtocolError(CODE, f"an order of {order.bps} bps for epoch {order.epoch}")
    require_signer(domain, order, signature, validator)
    return SignedSlash(validator, order, signature)


def group_orders(signed: Iterable[SignedSlash]) -> dict[Slash, dict[Address, bytes]]:
    """Signatures by order."""
    groups: dict[Slash, dict[Address, bytes]] = {}
    for item in signed:
        groups.setdefault(item.order, {})[item.validator] = item.signature
    return groups


def list_quorums(powers: Mapping[Address, int], signed: Iterable[SignedSlash]) -> list[OrderQuorum]:
    """The orders that more than 2/3 of all power signed.

    Args: `powers`: of the members of the epoch's frozen set.
    """
    total = sum(powers.values())
    found = []
    for order, signatures in group_orders(signed).items():
        members = {who: signature for who, signature in signatures.items() if who in powers}
        if 3 * sum(powers[who] for who in members) > 2 * total:
            found.append(OrderQuorum(order, members))
    return found
