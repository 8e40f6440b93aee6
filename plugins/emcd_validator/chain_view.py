"""Reading a round's view from the chain, and the little else a validator asks of it.

Invariants: every read of one view is pinned to one block; a view is kept while the round may still
be settled, and read again when the chain no longer has its blocks (a reorganisation).
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from emcd.accounting.weights import settle_locks
from emcd.chain import BlockRef, Chain, Deposit, Publication
from emcd.errors import RecoverableError
from emcd.services import ParametersInForce
from emcd_validator.view import RoundView, list_endpoints

_KEPT_VIEWS = 32


class ChainViews:
    """The views of recent rounds."""

    def __init__(self, chain: Chain, parameters: ParametersInForce) -> None:
        self._chain = chain
        self._parameters = parameters
        self._views: dict[int, RoundView] = {}
        self._lock = trio.Lock()
        self._deposit_lock = trio.Lock()
        self._deposits: list[Deposit] = []

    async def wait_view(self, round_index: int) -> RoundView:
        """The round's view, as soon as its beacon is confirmed. Cancellation: at once."""
        while True:
            try:
                return await self.fetch_view(round_index)
            except RecoverableError:
                await trio.sleep(self._chain.config.poll_s)

    async def fetch_view(self, round_index: int) -> RoundView:
        """The round's view. Raises: RecoverableError while the beacon is not confirmed."""
        async with self._lock:
            known = self._views.get(round_index)
            if known is not None:
                return known
            view = await self._read_view(round_index)
            while len(self._views) >= _KEPT_VIEWS:
                del self._views[min(self._views)]
            self._views[round_index] = view
            return view

    async def fetch_checked_view(self, round_index: int) -> RoundView:
        """The view, after asking whether the chain still has its blocks. Raises: RecoverableError."""
        view = await self.fetch_view(round_index)
        snapshot = await self._chain.fetch_block(view.snapshot_block)
        beacon = await self._chain.fetch_block(view.beacon_block)
        if (snapshot.hash, beacon.hash) != (view.snapshot_hash, view.beacon_hash):
            async with self._lock:
                self._views.pop(round_index, None)
            view = await self.fetch_view(round_index)
        return view

    async def fetch_publication(self, round_index: int) -> Publication:
        return await self._chain.distributor.fetch_publication(
            round_index, at=await self._chain.confirmed_head()
        )

    async def find_tip_round(self) -> int | None:
        """The newest published round that is not void."""
        return await self._chain.distributor.find_tip_round(at=await self._chain.confirmed_head())

    async def fetch_deposits(self) -> Sequence[Deposit]:
        """Every deposit of the vault, at the newest block: the hub may know one before us.

        Those that are confirmed are read once.
        """
        async with self._deposit_lock:
            confirmed = await self._chain.confirmed_head()
            self._deposits += await self._chain.vault.fetch_deposits(len(self._deposits), at=confirmed)
            fresh = await self._chain.vault.fetch_deposits(len(self._deposits), at=await self._chain.head())
            return [*self._deposits, *fresh]

    async def _read_view(self, round_index: int) -> RoundView:
        params = self._parameters.schedule.params_at(round_index)
        epoch = params.epoch_of(round_index)
        start_s = params.round_start_ms(round_index) // 1000
        snapshot = await self._chain.block_at(start_s)
        beacon = await self._fetch_beacon(start_s, params.beacon_blocks)
        participants = settle_locks(params, await self._chain.staking.fetch_snapshot(snapshot, epoch))
        members = await self._chain.staking.fetch_validator_set(epoch, at=beacon)
        validators = tuple(entry for entry in members if any(entry.power_wei))
        found = await self._chain.staking.fetch_participants(at=beacon)
        return RoundView(
            round=round_index,
            snapshot_block=snapshot.number,
            snapshot_hash=snapshot.hash,
            beacon_block=beacon.number,
            beacon_hash=beacon.hash,
            participants=participants,
            validators=validators,
            endpoints=list_endpoints(found, validators),
        )

    async def _fetch_beacon(self, start_s: int, blocks: int) -> BlockRef:
        """The block `blocks` after the first with timestamp >= start, once it is confirmed."""
        before = await self._chain.block_at(start_s - 1)
        number = before.number + 1 + blocks
        if (await self._chain.confirmed_head()).number < number:
            raise RecoverableError("EMC-1806", f"the beacon of the round from {start_s} s is block {number}")
        return await self._chain.fetch_block(number)
