"""Gives the running devnet its users: accounts, API keys, allowances, credits bought in the vault.

Works through the hub's administration API and the chain, as an operator would. Every step is
found done when it runs again.
"""

from __future__ import annotations

from typing import Any

import trio

from emcd.chain import Chain, ChainConfig
from emcd.chain.sender import send_call
from emcd.errors import FatalError
from emcd.money import MICRO_PER_CREDIT, WEI_PER_TOKEN
from emcd.net.http_client import request
from emcd.proto.address import parse_hash
from emcd.proto.network import Deployment
from emcd_devchain.devnet.layout import DevnetLayout
from emcd_devchain.devnet.prepare import open_key, write_private
from emcd_devchain.devnet.roster import ALLOWANCE_CREDITS, PURCHASE_TOKEN, USER, VALIDATORS

CREDIT_WAIT_S = 60.0
BUYERS = ("user", "demo")
"""Accounts paid from the vault: the traffic's, and the one whose key stands in devnet.json."""


async def provision(layout: DevnetLayout, deployment: Deployment) -> None:
    """Make what is missing. The hub and the chain must answer."""
    for member in VALIDATORS:
        account = await _ensure_account(layout, member.name)
        await _admin(
            layout,
            "POST",
            "/admin/credits",
            {
                "account_id": account["account_id"],
                "credits_micro": str(ALLOWANCE_CREDITS * MICRO_PER_CREDIT),
                "key": f"devnet-allowance-{member.name}",
                "note": "allowance for probes",
            },
        )
        await _ensure_api_key(layout, member.name, account)
    for name in BUYERS:
        account = await _ensure_account(layout, name)
        if int(account["vault_micro"]) == 0 and not layout.api_key(name).exists():
            await _buy_credits(layout, deployment, account)
        await _ensure_api_key(layout, name, account)


async def _ensure_account(layout: DevnetLayout, name: str) -> dict[str, Any]:
    accounts = (await _admin(layout, "GET", "/admin/accounts"))["accounts"]
    for account in accounts:
        if account["name"] == name:
            return dict(account)
    return await _admin(layout, "POST", "/admin/accounts", {"name": name})


async def _ensure_api_key(layout: DevnetLayout, name: str, account: dict[str, Any]) -> None:
    path = layout.api_key(name)
    if path.exists():
        return
    made = await _admin(
        layout, "POST", "/admin/api-keys", {"account_id": account["account_id"], "label": f"devnet {name}"}
    )
    write_private(path, made["api_key"] + "\n")


async def _buy_credits(layout: DevnetLayout, deployment: Deployment, account: dict[str, Any]) -> None:
    """Burn token in the vault for an account and wait until the hub has seen it."""
    key = await trio.to_thread.run_sync(open_key, layout, USER.name)
    chain = Chain(ChainConfig(rpc_urls=(layout.rpc_url,), confirmations=1), deployment)
    amount_wei = PURCHASE_TOKEN * WEI_PER_TOKEN
    approve = chain.token.submit_approve(deployment.vault, amount_wei)
    buy = chain.vault.submit_buy(parse_hash(account["vault_account"]), amount_wei)
    for call in (approve, buy):
        await send_call(chain.rpc, deployment.chain_id, key, call)
    with trio.move_on_after(CREDIT_WAIT_S):
        while True:
            shown = await _admin(layout, "GET", f"/admin/accounts/{account['account_id']}")
            if int(shown["vault_micro"]) > 0:
                return
            await trio.sleep(0.3)
    raise FatalError("EMC-2234", f"the hub has not credited a purchase within {CREDIT_WAIT_S:.0f} s")


async def _admin(
    layout: DevnetLayout, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    token = (await trio.Path(layout.admin_token).read_text()).strip()
    answer = await request(
        method,
        layout.admin_url + path,
        json=body,
        headers={"Authorization": f"Bearer {token}"},
        timeout_s=20.0,
    )
    if answer.status >= 300:
        raise FatalError("EMC-2234", f"{method} {path} is answered by {answer.status}: {answer.body[:200]!r}")
    return dict(answer.json())
