"""What validators say of offences and orders, for people: fetched from all of them at once.

Owns no opinion: offences are shown as validators list them, orders as far as their signatures hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import structlog
import trio

from emcd.chain import Chain
from emcd.errors import ConfigError, EmcdError, RemoteProtocolError
from emcd.net.http_client import request
from emcd.proto.address import parse_hash
from emcd.proto.messages import Slash
from emcd.types import Address
from emcd_settler.peer import MAX_SLASHES_BYTES, PeerCollector
from emcd_settler.slash_rule import OrderQuorum, SignedSlash, list_quorums


class _Item(msgspec.Struct, frozen=True):
    hash: str
    name: str
    offender: str
    round: int


class _Page(msgspec.Struct, frozen=True):
    offences: list[_Item]


@dataclass
class SeenOffence:
    """An offence, who lists it, and how much of each epoch's power has ordered its punishment."""

    evidence_hash: bytes
    name: str
    offender: str
    round: int
    listed_by: list[Address] = field(default_factory=list)
    signed_bps: dict[int, int] = field(default_factory=dict)
    is_used: bool = False


@dataclass(frozen=True)
class SlashBoard:
    """Everything known of the current and the last epoch."""

    offences: list[SeenOffence]
    quorums: list[OrderQuorum]


async def fetch_board(chain: Chain, *, allow_loopback: bool, timeout_s: float = 10.0) -> SlashBoard:
    """Ask the chain for the validators, and these for what they know.

    Raises: RecoverableError (the chain). A validator that does not answer is left out.
    """
    params = chain.deployment.params
    current = params.epoch_of(max(0, await chain.staking.fetch_current_round()))
    peers = PeerCollector(
        chain.deployment.distributor_domain,
        structlog.get_logger(),
        staking=chain.deployment.staking_domain,
        allow_loopback=allow_loopback,
        timeout_s=timeout_s,
    )
    found: dict[bytes, SeenOffence] = {}
    quorums: list[OrderQuorum] = []
    for epoch in range(max(0, current - 1), current + 1):
        powers, endpoints = await _fetch_members(chain, epoch)
        signed = await peers.collect_slashes(epoch, endpoints, ())
        quorums += list_quorums(powers, signed)
        if epoch == current:
            await _collect_offences(endpoints, peers, found, timeout_s)
        _add_signed(found, powers, epoch, signed)
    for item in found.values():
        item.is_used = await chain.staking.fetch_evidence_used(item.evidence_hash)
    return SlashBoard(sorted(found.values(), key=lambda item: (item.round, item.evidence_hash)), quorums)


def find_quorum(board: SlashBoard, evidence_hash: bytes) -> OrderQuorum:
    """The order for an evidence that the contract takes, of the newest epoch.

    Raises: ConfigError EMC-1976 when not enough validators have signed one.
    """
    fitting = [item for item in board.quorums if item.order.evidence_hash == evidence_hash]
    if not fitting:
        raise ConfigError("EMC-1976", f"0x{evidence_hash.hex()}")
    return max(fitting, key=lambda item: item.order.epoch)


async def _fetch_members(chain: Chain, epoch: int) -> tuple[dict[Address, int], dict[Address, str]]:
    members = (await chain.staking.fetch_validator_set(epoch)).members
    found = {node: await chain.staking.find_participant(node) for node, _ in members}
    endpoints = {node: item.endpoint for node, item in found.items() if item is not None and item.endpoint}
    return {node: int(power) for node, power in members}, endpoints


async def _collect_offences(
    endpoints: Mapping[Address, str], peers: PeerCollector, found: dict[bytes, SeenOffence], timeout_s: float
) -> None:
    async def ask(validator: Address, endpoint: str) -> None:
        try:
            peers.require_askable(endpoint)
            url = f"{endpoint.rstrip('/')}/offences"
            answer = await request("GET", url, timeout_s=timeout_s, max_bytes=MAX_SLASHES_BYTES)
            items = answer.json(_Page).offences if answer.status == 200 else []
            for item in items:
                identity = bytes(parse_hash(item.hash))
                seen = SeenOffence(identity, item.name, item.offender, item.round)
                found.setdefault(identity, seen).listed_by.append(validator)
        except (EmcdError, RemoteProtocolError):
            return

    async with trio.open_nursery() as nursery:
        for validator, endpoint in endpoints.items():
            nursery.start_soon(ask, validator, endpoint)


def _add_signed(
    found: dict[bytes, SeenOffence], powers: Mapping[Address, int], epoch: int, signed: list[SignedSlash]
) -> None:
    total = sum(powers.values()) or 1
    shares: dict[Slash, int] = {}
    for item in signed:
        shares[item.order] = shares.get(item.order, 0) + powers.get(item.validator, 0)
    for order, power in shares.items():
        seen = found.setdefault(
            order.evidence_hash, SeenOffence(order.evidence_hash, "not shown", order.node, -1)
        )
        seen.signed_bps[epoch] = power * 10_000 // total
