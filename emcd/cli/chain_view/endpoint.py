"""Each RPC endpoint by itself: whether it answers, how far it is, and whether it tells the same chain."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from emcd.chain import BlockRef, JsonRpc
from emcd.chain.blocks import fetch_block, fetch_head
from emcd.chain.endpoint import show_url
from emcd.errors import EmcdError

TIMEOUT_S = 8.0
LAG_BLOCKS = 5
"""Behind by more than this, an endpoint is not in sync."""


@dataclass
class EndpointView:
    """What one endpoint says. `common` is its block at the number that all who answered have."""

    url: str
    head: BlockRef | None = None
    answered_ms: int = 0
    common: BlockRef | None = None
    problem: str = ""


async def view_endpoints(urls: Sequence[str], chain_id: int) -> list[EndpointView]:
    """Ask all at the same time, then compare one block that all of them have."""
    views = [EndpointView(show_url(url)) for url in urls]
    clients = [JsonRpc([url], chain_id, timeout_s=TIMEOUT_S) for url in urls]
    async with trio.open_nursery() as nursery:
        for view, client in zip(views, clients, strict=True):
            nursery.start_soon(_ask_head, view, client)
    heads = [view.head for view in views if view.head is not None]
    if not heads:
        return views
    lowest = min(head.number for head in heads)
    async with trio.open_nursery() as nursery:
        for view, client in zip(views, clients, strict=True):
            if view.head is not None:
                nursery.start_soon(_ask_common, view, client, lowest)
    judge_endpoints(views)
    return views


async def _ask_head(view: EndpointView, client: JsonRpc) -> None:
    began = time.monotonic()
    try:
        with trio.fail_after(2 * TIMEOUT_S):
            await client.require_chain_id()
            view.head = await fetch_head(client)
    except (EmcdError, trio.TooSlowError) as exc:
        view.problem = str(exc.detail) if isinstance(exc, EmcdError) else "does not answer in time"
    view.answered_ms = round((time.monotonic() - began) * 1000)


async def _ask_common(view: EndpointView, client: JsonRpc, number: int) -> None:
    try:
        view.common = await fetch_block(client, number)
    except EmcdError as exc:
        view.problem = f"block {number}: {exc.detail}"


def judge_endpoints(views: Sequence[EndpointView]) -> None:
    """Write each one's problem: another chain than most tell, or far behind those that tell the same."""
    told = [view for view in views if view.common is not None]
    hashes = [view.common.hash for view in told if view.common is not None]
    usual = max(hashes, key=hashes.count, default=None)
    is_settled = len(hashes) == 1 or 2 * hashes.count(usual) > len(hashes) if usual else False
    agreeing = [view for view in told if view.common is not None and view.common.hash == usual]
    newest = max((view.head.number for view in agreeing if view.head is not None), default=0)
    for view in told:
        assert view.common is not None
        assert view.head is not None
        if not is_settled:
            view.problem = f"endpoints contradict each other about block {view.common.number}"
        elif view.common.hash != usual:
            view.problem = (
                f"tells another chain: its block {view.common.number} is 0x{view.common.hash.hex()}"
            )
        elif newest - view.head.number > LAG_BLOCKS:
            view.problem = f"{newest - view.head.number} blocks behind"
