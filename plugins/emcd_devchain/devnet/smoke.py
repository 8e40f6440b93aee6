"""The unattended proof: one provider's money goes from a closed round to its wallet, on chain.

Asks for an extraction as the provider would, waits for the claim, and compares the token balance
on chain with the table of the hub and with a recomputation of every bundle.
"""

from __future__ import annotations

import time
from typing import Any

import trio
from rich.console import Console

from emcd.accounting.audit import audit_bundle
from emcd.chain import Chain, ChainConfig
from emcd.errors import FatalError, RecoverableError
from emcd.money import decode_wei, format_token_floor
from emcd.net.http_client import request
from emcd.proto.json_form import to_json
from emcd.proto.messages import Extraction
from emcd.proto.network import Deployment
from emcd_devchain.devnet.layout import DevnetLayout
from emcd_devchain.devnet.prepare import open_key
from emcd_devchain.devnet.process import require_alive
from emcd_devchain.devnet.roster import CHEATS, NODES, Member
from emcd_devchain.devnet.view import CONVICTED, worst_statistic
from emcd_devchain.devnet.watch import fetch_json, load_names, print_round
from emcd_devchain.devnet.why import fetch_reasons

PROVIDER = NODES[0]
SMOKE_S = 300.0
_CLOSED = ("closed", "attested", "published", "active")


async def prove_claim(layout: DevnetLayout, deployment: Deployment, console: Console) -> dict[str, Any]:
    """Run the whole scenario; returns what was shown.

    Raises: FatalError EMC-2234 (too slow), EMC-2236 (the books do not agree).
    """
    began = time.monotonic()
    with trio.move_on_after(SMOKE_S):
        number, detail = await _wait_for_reward(layout)
        wallet_key = await trio.to_thread.run_sync(open_key, layout, PROVIDER.wallet_name)
        chain = Chain(ChainConfig(rpc_urls=(layout.rpc_url,), confirmations=1), deployment)
        before_wei = await chain.token.fetch_balance(wallet_key.address)
        claimed_before_wei = await chain.distributor.fetch_claimed(wallet_key.address)
        extraction = Extraction(
            wallet=wallet_key.address,
            recipient=wallet_key.address,
            through_round=number,
            submit=True,
            nonce=await chain.distributor.fetch_extraction_nonce(wallet_key.address),
            deadline=int(time.time()) + 3600,
        )
        signature = wallet_key.sign(deployment.distributor_domain, extraction)
        await _ask_extraction(layout, extraction, signature)
        console.print(f"{PROVIDER.name} asks for its rewards through round {number}")
        after_wei = await _wait_for_balance(layout, chain, wallet_key.address, before_wei)
        claimed_wei = await chain.distributor.fetch_claimed(wallet_key.address)
        names = load_names(layout)
        await print_round(layout, console, detail, names)
        await _compare_books(layout, deployment, number, claimed_wei, wallet_key.address)
        received_wei, paid_wei = after_wei - before_wei, claimed_wei - claimed_before_wei
        _require(
            received_wei == paid_wei, f"the balance grew by {received_wei} wei, the contract paid {paid_wei}"
        )
        convictions = {cheat.name: _require_conviction(layout, detail, cheat) for cheat in CHEATS}
        reasons = {names[node]: text for node, text in (await fetch_reasons(layout, detail, names)).items()}
        console.print(
            f"{PROVIDER.name} claimed {format_token_floor(received_wei)} EMC; its balance on chain is "
            f"{format_token_floor(after_wei)} EMC. {' and '.join(convictions)} earned nothing."
        )
        return {
            "round": number,
            "claimed_wei": str(claimed_wei),
            "balance_wei": str(after_wei),
            "convictions": {
                name: {"statistic": statistic, "reason": reasons.get(name, "")}
                for name, statistic in convictions.items()
            },
            "seconds": round(time.monotonic() - began, 1),
            "participants": detail["participants"],
        }
    raise FatalError("EMC-2234", f"no claim was confirmed within {SMOKE_S:.0f} s")


async def _wait_for_reward(layout: DevnetLayout) -> tuple[int, dict[str, Any]]:
    """The first closed round in which the provider earns and every cheat is convicted."""
    seen: set[int] = set()
    while True:
        require_alive(layout)
        try:
            for entry in (await fetch_json(f"{layout.hub_url}/api/rounds"))["rounds"]:
                number = int(entry["round"])
                if entry["state"] not in _CLOSED or number in seen:
                    continue
                seen.add(number)
                detail = await fetch_json(f"{layout.hub_url}/api/rounds/{number}")
                rows = _rows_by_name(layout, detail)
                if _has_reward(rows.get(PROVIDER.name)) and all(
                    rows.get(cheat.name, {}).get("reason") in CONVICTED for cheat in CHEATS
                ):
                    return number, detail
        except RecoverableError:
            pass
        await trio.sleep(0.5)


async def _ask_extraction(layout: DevnetLayout, extraction: Extraction, signature: bytes) -> None:
    answer = await request(
        "POST",
        f"{layout.hub_url}/api/wallets/{extraction.wallet}/extractions",
        json={"extraction": to_json(extraction), "signature": "0x" + signature.hex()},
    )
    if answer.status != 202:
        reason = f"{answer.status}: {answer.body[:300]!r}"
        raise FatalError("EMC-2236", f"the extraction request is answered by {reason}")


async def _wait_for_balance(layout: DevnetLayout, chain: Chain, wallet: Any, before_wei: int) -> int:
    while True:
        require_alive(layout)
        try:
            balance_wei = await chain.token.fetch_balance(wallet)
            if balance_wei > before_wei:
                return int(balance_wei)
        except RecoverableError:
            pass
        await trio.sleep(0.5)


async def _compare_books(
    layout: DevnetLayout, deployment: Deployment, through: int, claimed_wei: int, wallet: Any
) -> None:
    """Recompute the bundle whose root is active; it must give the wallet what the chain paid."""
    chain = Chain(ChainConfig(rpc_urls=(layout.rpc_url,), confirmations=1), deployment)
    active = await chain.distributor.find_active_root()
    covers = active is not None and active.round >= through
    _require(covers, f"the active root does not cover round {through}")
    assert active is not None
    answer = await request(
        "GET", f"{layout.hub_url}/api/rounds/{active.round}/bundle", timeout_s=30.0, max_bytes=64 << 20
    )
    outcome = await trio.to_thread.run_sync(audit_bundle, answer.body)
    _require(outcome.ok, f"the bundle of round {active.round} fails its audit: {outcome.difference}")
    assert outcome.result is not None
    _require(outcome.result.root == active.root, "the recomputed root is not the one on chain")
    totals_wei = {t.wallet: decode_wei(t.cumulative_wei) for t in outcome.result.totals_after}
    total_wei = totals_wei[wallet]
    _require(total_wei >= claimed_wei > 0, f"the bundle gives {total_wei} wei, the chain paid {claimed_wei}")


def _has_reward(row: dict[str, Any] | None) -> bool:
    return row is not None and int(row["reward_wei"]) > 0


def _require_conviction(layout: DevnetLayout, detail: dict[str, Any], cheat: Member) -> float:
    row = _rows_by_name(layout, detail)[cheat.name]
    statistic = worst_statistic(row)
    earned_wei = int(row["reward_wei"])
    _require(earned_wei == 0, f"{cheat.name} serves another model and earns {earned_wei} wei")
    _require(statistic is not None, f"{cheat.name} was convicted without a number")
    assert statistic is not None
    return statistic


def _rows_by_name(layout: DevnetLayout, detail: dict[str, Any]) -> dict[str, dict[str, Any]]:
    names = load_names(layout)
    return {names.get(row["node"], row["node"]): row for row in detail["participants"]}


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise FatalError("EMC-2236", complaint)
