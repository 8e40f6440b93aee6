"""What chain, hub and validators say of a payment, for `emcd why-unpaid`. Nothing is decided here."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio

from emcd.accounting.payment_path import ChainFacts, MissingCall
from emcd.bundle_file import audit_somewhere, open_bundle
from emcd.chain import CallReverted, Chain
from emcd.chain.call import parse_log
from emcd.chain.rpc import RpcRefused
from emcd.cli.network import Network
from emcd.cli.rewards import fetch_document
from emcd.errors import ConfigError, RecoverableError
from emcd.money import format_token_floor
from emcd.net.download import download
from emcd.net.http_client import request
from emcd.proto.address import address_bytes
from emcd.proto.bundle import Bundle, CallEntry
from emcd.proto.bundle_codec import MAX_BUNDLE_BYTES, BundleReader, Section, find_call, iter_calls
from emcd.proto.records import format_call_id
from emcd.types import Address, ParticipantRole

CLOSED = ("closed", "attested", "published", "active", "void")
ASK_S = 10.0


async def fetch_bundle(network: Network, number: int, node: Address | None, call_id: bytes = b"") -> Bundle:
    """The audited bundle of a round, with the calls of one node or router alone: that of `call_id`, or `node`.

    Raises: ConfigError EMC-2142 (no bundle), EMC-2143 (it fails its audit).
    """
    url = f"{network.require_hub()}/api/rounds/{number}/bundle"
    with TemporaryDirectory(prefix="emcd-") as folder:
        file = Path(folder) / "bundle"
        answer = await download(url, file, max_bytes=MAX_BUNDLE_BYTES, timeout_s=120.0)
        if answer.status != 200:
            raise ConfigError(
                "EMC-2142", f"round {number} has no bundle yet (the hub answers {answer.status})"
            )
        outcome = await audit_somewhere(file)
        if not outcome.ok:
            raise ConfigError("EMC-2143", f"round {number}: {outcome.difference}")
        return await trio.to_thread.run_sync(read_slim, file, node, call_id)


def read_slim(file: Path, node: Address | None, call_id: bytes) -> Bundle:
    """A bundle without the calls and batches that nobody asked for: it may hold a million."""
    with open_bundle(file) as data:
        reader = BundleReader(data)
        found = find_call(reader, call_id) if node is None else None
        target = node if found is None else found[1].forward.node
        wanted: list[CallEntry] = []
        if target is not None:
            wanted = [*iter_calls(reader, node=target), *iter_calls(reader, router=target)]
        parts = {
            section.label: tuple(reader.items(section))
            for section in Section
            if section not in (Section.HEADER, Section.CALLS, Section.BATCHES)
        }
        return Bundle(header=reader.header, calls=tuple(wanted), batches=(), **parts)


async def fetch_facts(
    network: Network, number: int, node: Address | None, wallet: Address | None
) -> ChainFacts:
    """What the contracts and the hub say now of a round, a node and its wallet."""
    detail = await fetch_document(f"{network.require_hub()}/api/rounds/{number}")
    chain = network.open_chain()
    published = await chain.distributor.find_last_round()
    active = await chain.distributor.find_active_root()
    paused_s = await chain.distributor.fetch_paused_until_s()
    return ChainFacts(
        published_round=-1 if published is None else published,
        active_round=active.round if active else -1,
        claimed_wei=await chain.distributor.fetch_claimed(wallet) if wallet else 0,
        is_void=detail["state"] == "void",
        paused_until=_time(paused_s) if paused_s > time.time() else "",
        request=await _describe_request(network, wallet) if wallet else "",
        slashes=await find_slashes(chain, node) if node else (),
    )


async def find_missing(network: Network, call_id: bytes) -> MissingCall:
    """Where a call that no bundle holds may be. Its id begins with the time at which it began."""
    params = network.deployment.params
    began = max(0, params.round_at(int.from_bytes(call_id[:6], "big")))
    listed: list[dict[str, Any]] = (await fetch_document(f"{network.require_hub()}/api/rounds"))["rounds"]
    states = {int(entry["round"]): str(entry["state"]) for entry in listed}
    closed = max((number for number, state in states.items() if state in CLOSED), default=-1)
    filed = await _find_filed(network.open_chain(), call_id, began) if began <= closed else ()
    return MissingCall(
        began, states.get(began, "not listed by the hub any more"), filed, began + params.carry_rounds
    )


async def find_slashes(chain: Chain, node: Address) -> tuple[str, ...]:
    """What was slashed of a node's stake, by the contract's events; empty where the chain can't be asked."""
    event = chain.staking.abi.event("Slashed")
    wanted = {
        "address": chain.staking.address,
        "topics": ["0x" + event.topic.hex(), "0x" + (bytes(12) + address_bytes(node)).hex()],
        "fromBlock": hex(chain.deployment.deployed_block),
        "toBlock": "latest",
    }
    try:
        logs = [parse_log(raw) for raw in await chain.rpc.call("eth_getLogs", wanted)]
        found = [event.decode(log.topics, log.data) for log in logs]
    except (RpcRefused, RecoverableError, CallReverted, TypeError, KeyError, ValueError):
        return ()
    return tuple(
        f"{format_token_floor(args['amountWei'])} EMC ({args['bps'] / 100:g} %) in epoch {args['epoch']},"
        f" evidence 0x{args['evidenceHash'].hex()}"
        for args in found
    )


async def _describe_request(network: Network, wallet: Address) -> str:
    """The wallet's newest extraction request, in words; "" for none."""
    url = f"{network.require_hub()}/api/wallets/{wallet}/extractions?limit=1"
    try:
        listed = (await fetch_document(url))["extractions"]
    except RecoverableError:
        return ""
    if not listed:
        return "no extraction was requested (emcd extract, or emcd claim)"
    newest = listed[0]
    said = f"its extraction request through round {newest['through_round']} is {newest['state']}"
    if newest["reason"]:
        said += f": {newest['reason']}"
    if newest["note"]:
        said += f"; the settler {newest['note']['by']} says: {newest['note']['text']}"
    return said


async def _find_filed(chain: Chain, call_id: bytes, began: int) -> tuple[Address, ...]:
    """The validators that hold the call as an omission of the round it began in, or of the next."""
    members = await chain.staking.fetch_participants(at=await chain.head())
    found: list[Address] = []

    async def ask(validator: Address, endpoint: str) -> None:
        for number in (began, began + 1):
            try:
                url = f"{endpoint.rstrip('/')}/omissions/{number}?from={format_call_id(call_id)}"
                answer = await request("GET", url, timeout_s=ASK_S, max_bytes=16 << 20)
                if answer.status == 200 and format_call_id(call_id) in answer.body.decode("utf-8", "replace"):
                    found.append(validator)
                    return
            except RecoverableError:
                return

    async with trio.open_nursery() as nursery:
        for item in members:
            if item.role == ParticipantRole.VALIDATOR and item.endpoint:
                nursery.start_soon(ask, item.node, item.endpoint)
    return tuple(sorted(found))


def _time(time_s: int) -> str:
    return datetime.fromtimestamp(min(time_s, 2**33), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
