"""Outbox and watcher through nodes that stall, cut, garble and lose answers, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from emcd.chain import Call, Confirmed, JsonRpc, Outbox, OutboxPolicy, TxIntent
from emcd.chain.tx import FeePolicy
from emcd.errors import FatalError, RecoverableError
from emcd.ledger import Ledger
from emcd.ledger.outbox_store import LedgerOutboxStore
from emcd.testing import make_key
from tests.support.anvil import running_anvil
from tests.support.devchain import CHAIN_ID, POOR, RICH, running_devchain
from tests.support.faulty_node import FAULTS, at_random, faulty_node

COUNT = 4


@dataclass(frozen=True)
class Good:
    """An honest node, and its chain."""

    url: str
    chain_id: int


@pytest.fixture(params=["devchain", pytest.param("anvil", marks=pytest.mark.anvil)])
async def good(request: pytest.FixtureRequest, ledger: Ledger, tmp_path: Path) -> AsyncIterator[Good]:
    if request.param == "anvil":
        async with running_anvil(block_s=1) as anvil:
            await anvil.fund(RICH.address)
            yield Good(anvil.url, anvil.chain_id)
    else:
        async with running_devchain(ledger, tmp_path) as url:
            yield Good(url, CHAIN_ID)


@pytest.mark.parametrize("share", [0.3])
async def test_outbox_through_a_node_that_fails_at_random_pays_each_once(
    ledger: Ledger, good: Good, share: float
) -> None:
    async with faulty_node(good.url, at_random(7, share)) as bad:
        rpc = JsonRpc([bad.url], good.chain_id, timeout_s=0.2)
        fees = FeePolicy(bump_after_s=3, resend_after_s=1)
        box = Outbox(rpc, good.chain_id, LedgerOutboxStore(ledger), RICH, OutboxPolicy(2, 0.05, fees))
        async with trio.open_nursery() as nursery:
            await nursery.start(box.run)
            with trio.fail_after(60):
                for i in range(COUNT):
                    await box.submit(TxIntent(f"pay:{i}", Call(POOR.address, b"", 1)))
                outcomes = [await box.wait(f"pay:{i}") for i in range(COUNT)]
            nursery.cancel_scope.cancel()
        assert all(isinstance(outcome, Confirmed) for outcome in outcomes)
        assert len(bad.faults) > 5
        honest = JsonRpc([good.url], good.chain_id)
        assert int(await honest.call("eth_getBalance", POOR.address, "latest"), 16) == COUNT
        assert int(await honest.call("eth_getTransactionCount", RICH.address, "latest"), 16) == COUNT


@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_costs_one_try_and_the_next_endpoint_answers(good: Good, fault: str) -> None:
    async with faulty_node(good.url, lambda method: fault) as bad:
        rpc = JsonRpc([bad.url, good.url], good.chain_id, timeout_s=0.5)
        with trio.fail_after(2):
            assert await rpc.call("eth_getBalance", make_key("nobody").address, "latest") == "0x0"
        alone = JsonRpc([bad.url], good.chain_id, timeout_s=0.25)
        with trio.fail_after(2), pytest.raises(RecoverableError) as caught:
            await alone.call("eth_chainId")
        assert caught.value.code == "EMC-1502"


async def test_node_of_another_chain_is_fatal_even_as_a_second_choice(good: Good) -> None:
    rpc = JsonRpc(["http://127.0.0.1:1", good.url], 999, timeout_s=2)
    with pytest.raises(FatalError) as caught:
        await rpc.call("eth_blockNumber")
    assert caught.value.code == "EMC-1501"
