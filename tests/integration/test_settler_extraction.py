"""A settler claims what wallets asked for: once, to whom they named, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.accounting.reward_tree import RewardTree
from emcd.accounting.round_close import ClosedRound
from emcd.accounting.round_result import decode_totals
from emcd.keys import SigningKey
from emcd.ledger import Connection, Ledger
from emcd.proto.eip712 import Domain
from emcd.proto.messages import Veto
from emcd.role import HealthState
from emcd.testing import make_key
from tests.support.network import GENESIS_S, HOLDER
from tests.support.outbox import Crash
from tests.support.round_world import address_of, secret_of
from tests.support.settler_world import RECIPIENT, WALLET, Prepared, SettlerWorld, prepare, settler_world

STRANGER = make_key("stranger")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("chain")
    return trio.run(prepare, folder)


@pytest.fixture
async def world(prepared: Prepared, tmp_path: Path) -> AsyncIterator[SettlerWorld]:
    async with settler_world(prepared, tmp_path) as made:
        yield made


def earned(closed: ClosedRound, wallet: SigningKey = WALLET) -> int:
    return decode_totals(closed.result.totals_after)[wallet.address]


async def test_settler_extraction_is_claimed_once_for_its_recipient(world: SettlerWorld) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root)
    world.request(0)
    await world.move_to_round(2)

    async with world.running(publish_every_rounds=12):
        await world.wait_state(0, "confirmed")
        assert (await world.list_requests())[0]["state"] == "requested"
        await world.move_to_round(4)
        await world.wait_request("claimed")
        await world.wait_polls()

    assert (
        await world.balance() == earned(closed) == await world.chain.distributor.fetch_claimed(WALLET.address)
    )
    assert await world.chain.distributor.fetch_extraction_nonce(WALLET.address) == 1
    assert await world.count_sent() == 2


async def test_settler_second_extraction_is_paid_the_difference(world: SettlerWorld) -> None:
    first = world.close_round(0)
    second = world.close_round(1, first)
    world.attest(first.round_root)
    world.attest(second.round_root)
    world.request(0)
    await world.move_to_round(2)

    async with world.running(publish_every_rounds=12):
        await world.wait_state(0, "confirmed")
        await world.move_to_round(4)
        await world.wait_request("claimed")
        world.request(1, nonce=1)
        await world.wait_state(1, "confirmed")
        await world.move_to_round(6)
        await world.wait_request("claimed", nonce=1)

    assert await world.balance() == earned(second) > earned(first)


async def test_settler_request_forces_the_first_attested_round_that_covers_it(world: SettlerWorld) -> None:
    first = world.close_round(0)
    second = world.close_round(1, first)
    world.attest(second.round_root)
    world.request(0)
    await world.move_to_round(3)

    async with world.running(publish_every_rounds=12):
        await world.wait_state(1, "confirmed")
        await world.move_to_round(5)
        await world.wait_request("claimed")

    assert await world.balance() == earned(second)
    assert (await world.find_row(0))["reason"] == "covered by the root of round 1"


async def test_settler_wallet_that_claims_by_itself_gets_the_root_alone(world: SettlerWorld) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root)
    world.request(0, submit=False)
    await world.move_to_round(2)

    async with world.running(publish_every_rounds=12):
        await world.wait_state(0, "confirmed")
        await world.move_to_round(4)
        await world.wait_request("synchronised")
        await world.wait_polls()

    assert await world.balance() == 0
    assert await world.count_sent() == 1


async def test_settler_told_not_to_claim_leaves_it_to_the_wallet(world: SettlerWorld) -> None:
    world.attest(world.close_round(0).round_root)
    world.request(0)
    await world.move_to_round(2)

    async with world.running(submit_claims=False):
        await world.wait_state(0, "confirmed")
        await world.move_to_round(4)
        await world.wait_request("synchronised")

    assert await world.count_sent() == 1


BAD: dict[str, dict[str, Any]] = {
    "signed by another": {"wallet": STRANGER, "claimant": WALLET.address},
    "empty signature": {"signature": "0x"},
    "no hex": {"signature": "0xzz"},
    "no text": {"signature": 5},
    "zero signature": {"signature": "0x" + "00" * 65},
    "another chain": {"domain": Domain(1, address_of("x"))},
    "expired": {"deadline": GENESIS_S},
}


@pytest.mark.parametrize("case", [*BAD, "another contract", "nonsense", "unknown field", "far round"])
async def test_settler_bad_request_is_not_acted_on(world: SettlerWorld, case: str) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root)
    if case == "nonsense":
        world.requests = [{}, {"extraction": 5}, {"extraction": None, "signature": None}]
    elif case == "unknown field":
        world.request(0)
        world.requests[0]["extraction"]["extra"] = 1
    elif case == "far round":
        world.request(1 << 50)
    else:
        other = {"domain": world.deployment.staking_domain} if case == "another contract" else BAD[case]
        world.request(0, **other)
    await world.move_to_round(2)

    async with world.running(publish_every_rounds=12) as role:
        await world.wait_polls()
        assert role.health().state is HealthState.READY

    assert await world.list_requests() == []
    assert await world.find_row(0) is None
    assert await world.count_sent() == 0


async def test_settler_request_for_nothing_forces_no_publication(world: SettlerWorld) -> None:
    world.attest(world.close_round(0).round_root)
    world.request(0, wallet=STRANGER)
    await world.move_to_round(2)

    async with world.running(publish_every_rounds=12):
        await world.wait_polls(5)
        assert (await world.find_row(0))["state"] == "collecting"

    assert await world.count_sent() == 0


async def test_settler_request_below_its_least_amount_forces_no_publication(world: SettlerWorld) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root)
    world.request(0)
    await world.move_to_round(2)

    async with world.running(publish_every_rounds=12, least_claim_wei=str(earned(closed) + 1)):
        await world.wait_polls(5)

    assert await world.count_sent() == 0


async def test_settler_request_of_a_wallet_with_nothing_is_refused_when_the_root_is_active(
    world: SettlerWorld,
) -> None:
    world.attest(world.close_round(0).round_root)
    world.request(0, wallet=STRANGER)
    await world.move_to_round(2)

    async with world.running():
        await world.wait_state(0, "confirmed")
        await world.move_to_round(4)
        row = await world.wait_request("refused")

    assert row["reason"] == "the active root gives the wallet nothing more"
    assert await world.count_sent() == 1


async def test_settler_replayed_request_is_paid_once(world: SettlerWorld) -> None:
    """The hub lists a paid request for ever, and another settler starts with an empty ledger."""
    closed = world.close_round(0)
    world.attest(closed.round_root)
    world.request(0)
    world.requests *= 3
    await world.move_to_round(2)
    async with world.running():
        await world.wait_state(0, "confirmed")
        await world.move_to_round(4)
        await world.wait_request("claimed")
    sent = await world.count_sent()

    await world.ledger.write(lambda con: con.execute("DELETE FROM settler_extractions").close())
    async with world.running():
        row = await world.wait_request("refused")

    assert row["reason"] == "the contract has used this nonce, or a later one"
    assert await world.count_sent() == sent
    assert await world.balance() == earned(closed)


async def test_settler_two_requests_under_one_nonce_the_first_is_paid(world: SettlerWorld) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root)
    world.request(0)
    world.request(0, submit=False)
    await world.move_to_round(2)

    async with world.running():
        await world.wait_state(0, "confirmed")
        await world.move_to_round(4)
        await world.wait_request("claimed")

    assert len(await world.list_requests()) == 1
    assert await world.balance() == earned(closed)


async def test_settler_request_that_expires_while_it_waits_is_refused(world: SettlerWorld) -> None:
    world.attest(world.close_round(0).round_root)
    world.request(0, deadline=world.params.round_start_ms(3) // 1000)
    await world.move_to_round(2)

    async with world.running():
        await world.wait_state(0, "confirmed")
        await world.move_to_round(5)
        row = await world.wait_request("refused")

    assert row["reason"] == "expired before a root covered it"
    assert await world.balance() == 0


@pytest.mark.parametrize("lie", ["another round", "damaged", "none", "forged totals"])
async def test_settler_hub_that_lies_about_the_bundle_is_found_out(world: SettlerWorld, lie: str) -> None:
    """The validators' root is published; nothing is claimed until the right bundle is there."""
    closed = world.close_round(0)
    world.attest(closed.round_root)
    world.request(0)
    truth = world.bundles[0]
    if lie == "another round":
        world.close_round(1)
        world.bundles[0] = world.bundles[1]
    elif lie == "forged totals":
        world.close_round(0, calls_per_node=9)
    else:
        world.bundles = {0: truth[:-1]} if lie == "damaged" else {}
    await world.move_to_round(2)

    async with world.running() as role:
        await world.wait_state(0, "confirmed")
        await world.move_to_round(4)

        async def complains() -> bool:
            return "claiming" in role.health().reason

        await world.wait_for(complains)
        await world.wait_polls()
        assert ("EMC-1940" if lie == "none" else "EMC-1972") in role.health().reason
        assert await world.count_sent() == 1
        world.bundles[0] = truth
        await world.wait_request("claimed")

    assert await world.balance() == earned(closed)


async def test_settler_lying_hub_can_force_no_publication(world: SettlerWorld) -> None:
    world.attest(world.close_round(0).round_root)
    world.request(0)
    world.close_round(0, calls_per_node=9)
    await world.move_to_round(2)

    async with world.running(publish_every_rounds=12) as role:
        await world.wait_polls(5)
        assert "EMC-1972" in role.health().reason

    assert await world.count_sent() == 0


async def test_settler_root_vetoed_before_it_is_active_is_followed_by_another(world: SettlerWorld) -> None:
    first = world.close_round(0)
    world.attest(first.round_root)
    world.request(0)
    await world.move_to_round(2)

    async with world.running(publish_every_rounds=12):
        await world.wait_state(0, "confirmed")
        veto = Veto(0, first.bundle_hash, first.result.root)
        domain = world.deployment.distributor_domain
        signatures = {make_key(n).address: make_key(n).sign(domain, veto) for n in ("v1", "v2")}
        await world.network.send(HOLDER, world.chain.distributor.submit_veto(veto, signatures))
        second = world.close_round(1)
        world.attest(second.round_root)
        await world.move_to_round(3)
        await world.wait_state(1, "confirmed")
        await world.move_to_round(5)
        await world.wait_request("claimed")

    assert await world.balance() == earned(second)


async def test_settler_wallet_that_claims_itself_meanwhile_loses_nothing(world: SettlerWorld) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root)
    world.request(0)
    await world.move_to_round(2)
    async with world.running():
        await world.wait_state(0, "confirmed")
    await world.move_to_round(4)
    await _give_gas(world)
    tree = RewardTree(decode_totals(closed.result.totals_after))
    claim = world.chain.distributor.submit_claim(
        WALLET.address, earned(closed), tree.proof(WALLET.address), WALLET.address
    )
    await world.network.send(WALLET, claim)

    async with world.running():
        row = await world.wait_request("refused")

    assert row["reason"] == "the active root gives the wallet nothing more"
    assert await world.balance(WALLET.address) == earned(closed)


async def _give_gas(world: SettlerWorld) -> None:
    from tests.support.devchain import ETHER, sign_raw

    nonce = int(await world.network.rpc.call("eth_getTransactionCount", HOLDER.address, "latest"), 16)
    raw = sign_raw(HOLDER, nonce=nonce, to=WALLET.address, value=ETHER)
    await world.network.rpc.call("eth_sendRawTransaction", "0x" + raw.hex())


# --------------------------------------------------------------------------- crashes


async def run_until_crash(world: SettlerWorld, at: int, *, after: bool) -> bool:
    """Publish and claim, the ledger's writes counted; True when it died on the way."""
    ledger = CrashingLedger(world.ledger, at, after=after)
    role = world.make_role(publish_every_rounds=12)
    await world.set_up(role, "settler", ledger=ledger)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(role.run)
            await world.move_to_round(2)
            await world.wait_state(0, "confirmed")
            await world.move_to_round(4)
            await world.wait_request("claimed")
            nursery.cancel_scope.cancel()
    except* Crash:
        pass
    return ledger.crashed


class CrashingLedger:
    """A ledger that dies before or after its n-th write; what others write meanwhile may get through."""

    def __init__(self, ledger: Ledger, at: int, *, after: bool) -> None:
        self.path = ledger.path
        self.read = ledger.read
        self.crashed = False
        self._ledger = ledger
        self._left = at
        self._after = after

    async def write(self, change: Callable[[Connection], Any]) -> Any:
        self._left -= 1
        dies = self._left == 0
        if dies and not self._after:
            self.crashed = True
            raise Crash
        result = await self._ledger.write(change)
        if dies:
            self.crashed = True
            raise Crash
        return result


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_settler_that_dies_at_any_write_publishes_and_pays_exactly_once(
    prepared: Prepared, tmp_path: Path, after: bool
) -> None:
    step, crashed = 0, True
    while crashed:
        step += 1
        folder = tmp_path / str(step)
        folder.mkdir()
        async with settler_world(prepared, folder) as world:
            closed = world.close_round(0)
            world.attest(closed.round_root)
            world.request(0)
            crashed = await run_until_crash(world, step, after=after)
            async with world.running(publish_every_rounds=12):
                await world.move_to_round(2)
                await world.wait_state(0, "confirmed")
                await world.move_to_round(4)
                await world.wait_request("claimed")

            assert await world.count_sent() == 2, f"write {step}"
            assert await world.balance() == earned(closed)
            assert await world.chain.distributor.find_last_round() == 0
    assert step > 15


def test_world_wallet_is_the_one_of_the_rounds() -> None:
    assert (
        SigningKey(secret_of("wallet of node-1")).address == WALLET.address == address_of("wallet of node-1")
    )
    assert WALLET.address != RECIPIENT
