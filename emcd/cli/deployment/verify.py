"""Compares what is on the chain with what the plan makes: code, every view, holders, parameters.

Works from the rehearsal (`replay`), not from what a compiler says of immutables: the code at an
address must be byte for byte what the constructor leaves there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from emcd.chain import BlockRef, Call, CallReverted, Rpc
from emcd.chain.abi import load_contract
from emcd.chain.contracts import load_artifact
from emcd.chain.deploy import DeploymentPlan
from emcd.chain.proxies.parameters import ParametersProxy
from emcd.cli.deployment.costing import ContractStep
from emcd.cli.deployment.replay import Replay
from emcd.errors import RecoverableError
from emcd.proto.address import hex_hash
from emcd.proto.hashing import keccak
from emcd.proto.parameters import document_hash, encode_document, rules_hash, rules_of
from emcd.types import Address

_MOVING = frozenset(("candidates", "participantCount"))
"""What anybody may have changed since the deployment's own block."""


@dataclass(frozen=True)
class Check:
    """One comparison; `detail` says what differs, or what was compared."""

    name: str
    ok: bool
    detail: str


async def compare_code(rpc: Rpc, steps: Sequence[ContractStep], at: str = "latest") -> list[Check]:
    """The code at each address against the rehearsal's, byte for byte."""
    checks = []
    for step in steps:
        code = await rpc.call("eth_getCode", step.address, at)
        found = bytes.fromhex(str(code).removeprefix("0x"))
        compiler = f"solc {load_artifact(step.contract).compiler.version.split('+')[0]}"
        if found == step.runtime:
            detail = f"{len(found):,} bytes as {compiler} makes them"
            checks.append(Check(f"{step.contract} code", True, detail))
        elif not found:
            checks.append(Check(f"{step.contract} code", False, f"there is no contract at {step.address}"))
        else:
            detail = (
                f"the code at {step.address} ({len(found):,} bytes, hash {hex_hash(keccak(found))}) is not "
                f"what these artifacts make ({len(step.runtime):,} bytes)"
            )
            checks.append(Check(f"{step.contract} code", False, detail))
    return checks


async def compare_views(rpc: Rpc, steps: Sequence[ContractStep], replay: Replay, at: BlockRef) -> list[Check]:
    """Every view without arguments of every contract, on the chain at one block and in the rehearsal."""
    checks = []
    for step in steps:
        differs = []
        views = list(_list_views(step.contract))
        for name, data in views:
            expected = await trio.to_thread.run_sync(replay.view, step.address, data)
            found = await _ask(rpc, step.address, data, at)
            if found != expected:
                differs.append(
                    f"{name}() is {_shown(step.contract, name, found)}, not {_shown(step.contract, name, expected)}"
                )
        checks.append(
            Check(
                f"{step.contract} state", not differs, "; ".join(differs) or f"{len(views)} views as planned"
            )
        )
    return checks


async def compare_holders(rpc: Rpc, plan: DeploymentPlan, token: Address, at: BlockRef) -> Check:
    """Every holder's balance."""
    entry = load_contract("EMCToken").functions["balanceOf"]
    wrong = []
    for holder, wei in plan.holders.items():
        raw = await _ask(rpc, token, entry.encode((holder,)), at)
        if raw is None or int.from_bytes(raw, "big") != wei:
            wrong.append(holder)
    detail = (
        f"not as planned: {', '.join(wrong)}"
        if wrong
        else f"{len(plan.holders)} own 900,000,000 EMC together"
    )
    return Check("holders", not wrong, detail)


async def compare_parameters(rpc: Rpc, plan: DeploymentPlan, address: Address, at: BlockRef) -> Check:
    """Version 1 of the parameters: in force from the beginning, and of exactly the plan's document."""
    found = await ParametersProxy(rpc, address).fetch_version(1, at=at)
    wanted = document_hash(encode_document(plan.params, plan.prices))
    differs = []
    if found.from_epoch != 0:
        differs.append(f"it is in force from epoch {found.from_epoch}")
    if found.document_hash != wanted:
        differs.append(
            f"its document has hash {hex_hash(found.document_hash)}, the plan's {hex_hash(wanted)}"
        )
    if found.rules_hash != rules_hash(rules_of(plan.params)):
        differs.append("its rules for stakes are not the plan's")
    return Check(
        "parameters", not differs, "; ".join(differs) or f"version 1, document hash {hex_hash(wanted)}"
    )


def _list_views(contract: str) -> Iterator[tuple[str, bytes]]:
    functions = load_contract(contract).functions
    for entry in load_artifact(contract).abi:
        is_view = entry["type"] == "function" and entry["stateMutability"] in ("view", "pure")
        if is_view and not entry["inputs"] and entry["name"] not in _MOVING:
            yield entry["name"], functions[entry["name"]].encode(())


async def _ask(rpc: Rpc, to: Address, data: bytes, at: BlockRef) -> bytes | None:
    """A call's answer at a block; None when it reverts."""
    block = {"blockHash": hex_hash(at.hash), "requireCanonical": True}
    try:
        answer = await rpc.call("eth_call", Call(to, data).params(), block)
        return bytes.fromhex(answer.removeprefix("0x"))
    except CallReverted:
        return None
    except (ValueError, AttributeError) as exc:
        raise RecoverableError("EMC-1507", f"eth_call at {to}: {exc}") from exc


def _shown(contract: str, view: str, raw: bytes | None) -> str:
    if raw is None:
        return "refused"
    decode: Callable[[bytes], Any] = load_contract(contract).functions[view].decode
    values = decode(raw)
    text = str(values[0] if len(values) == 1 else values)
    return text if len(text) <= 80 else text[:77] + "..."
