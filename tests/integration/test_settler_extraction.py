"""A settler claims what wallets asked for: once, to whom they named, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from emcd.accounting.reward_tree import RewardTree
from emcd.accounting.round_close import ClosedRound
from emcd.accounting.round_result import decode_totals
from emcd.chain import Chain, ChainConfig, Failed
from emcd.keys import SigningKey
from emcd.ledger import Connection, Ledger, open_ledger
from emcd.net.http_server import serve_http
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.json_form import from_json
from emcd.proto.messages import Veto
from emcd.proto.settler_report import ReportKind, SettlerReport
from emcd.proto.signing import require_signer
from emcd.role import HealthState
from emcd.testing import make_key
from emcd_devchain.evm import EvmChain
from emcd_devchain.genesis import OfflineRpc
from emcd_devchain.store import ChainStore
from emcd_settler.schema import MIGRATIONS
from tests.support.devchain import CHAIN_ID, ETHER, sign_raw
from tests.support.network import GENESIS_S, HOLDER
from tests.support.outbox import Crash
from tests.support.round_world import address_of, secret_of
from tests.support.settler_world import (
    RECIPIENT,
    SETTLER,
    WALLET,
    LyingOutbox,
    Prepared,
    SettlerWorld,
    prepare,
    settler_world,
)

GUARDIAN = make_key("guardian")
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
        row = await world.wait_request("expired")

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
        await world.wait_for(lambda: _is_true("EMC-1972" in role.health().reason))
        await world.wait_polls()

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


@pytest.mark.parametrize("name", ["NonceUsed", "Expired", "NothingToClaim", "WrongSigner"])
async def test_settler_estimate_that_lies_ends_no_claim(world: SettlerWorld, name: str) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root)
    world.request(0)
    await world.move_to_round(2)
    role = world.make_role()
    await world.set_up(role, "settler")
    lies = {f"claim:{WALLET.address}:0": Failed(name, "a lie")}
    role._claimer._outbox = cast("Any", LyingOutbox(role._outbox, lies))

    async def find_tx(_: str) -> None:
        return None

    role._claimer._find_tx = find_tx
    async with trio.open_nursery() as nursery:
        await nursery.start(role.run)
        await world.wait_state(0, "confirmed")
        await world.move_to_round(4)
        await world.wait_request("submitted")
        await world.wait_polls()
        world.clock.at_ms += 2000
        row = await world.wait_request("claimed")
        nursery.cancel_scope.cancel()

    assert row["attempt"] == 1
    assert await world.balance() == earned(closed)


async def _give_gas(world: SettlerWorld, key: SigningKey = WALLET) -> None:
    nonce = int(await world.network.rpc.call("eth_getTransactionCount", HOLDER.address, "latest"), 16)
    raw = sign_raw(HOLDER, nonce=nonce, to=key.address, value=ETHER)
    await world.network.rpc.call("eth_sendRawTransaction", "0x" + raw.hex())


# --------------------------------------------------------------------------- what the hub is told


def told(world: SettlerWorld) -> list[SettlerReport]:
    """The reports, each checked to be the settler's own."""
    found = []
    for page in world.reports:
        report = from_json(SettlerReport, page["report"])
        signature = bytes.fromhex(page["signature"][2:])
        require_signer(world.deployment.staking_domain, report, signature, SETTLER.address)
        found.append(report)
    return found


async def test_settler_holds_a_small_claim_says_why_and_sends_it_once_it_has_grown(
    world: SettlerWorld,
) -> None:
    first = world.close_round(0)
    second = world.close_round(1, first)
    world.attest(first.round_root)
    world.request(0)
    await world.move_to_round(2)
    async with world.running():
        await world.wait_state(0, "confirmed")
    await world.move_to_round(3, offset_s=3)

    async with world.running(least_claim_wei=str(earned(second))):
        await world.wait_for(lambda: _is_true(bool(world.reports)))
        await world.wait_polls(5)
        [report] = told(world)
        assert (await world.list_requests())[0]["state"] == "requested"
        assert await world.balance() == 0
        world.attest(second.round_root)
        await world.wait_state(1, "confirmed")
        await world.move_to_round(5)
        row = await world.wait_request("claimed")

    assert report.kind == ReportKind.HELD
    assert "is below" in report.text
    assert (report.wallet, report.nonce) == (WALLET.address, 0)
    assert row["tx_hash"] is not None
    assert await world.balance() == earned(second)


async def test_settler_tells_the_transaction_of_a_claim(world: SettlerWorld) -> None:
    world.attest(world.close_round(0).round_root)
    world.request(0)
    await world.move_to_round(2)
    async with world.running():
        await world.wait_state(0, "confirmed")
    await world.move_to_round(4)
    deaf = DeafRpc(world.network.rpc)

    async with world.running(rpc=deaf):
        await world.wait_for(lambda: _is_true(bool(world.reports)))
        deaf.sends = True
        row = await world.wait_request("claimed")

    submitted = told(world)[-1]
    assert submitted.kind == ReportKind.SUBMITTED
    assert submitted.tx_hash == row["tx_hash"]


async def test_settler_waits_while_the_guardian_has_paused_claims_and_says_so(world: SettlerWorld) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root)
    world.request(0)
    await world.move_to_round(2)
    async with world.running():
        await world.wait_state(0, "confirmed")
    await world.move_to_round(4)
    await _give_gas(world, GUARDIAN)
    await world.network.send(GUARDIAN, world.chain.distributor.submit_pause(3600))

    async with world.running():
        await world.wait_for(lambda: _is_true(bool(world.reports)))
        assert await world.balance() == 0
        await world.network.send(GUARDIAN, world.chain.distributor.submit_unpause())
        await world.move_to_round(4, offset_s=10)
        await world.wait_request("claimed")

    assert "paused claims until" in told(world)[0].text
    assert await world.balance() == earned(closed)


async def test_settler_goes_on_when_no_hub_listens(world: SettlerWorld) -> None:
    world.listens = False
    closed = world.close_round(0)
    world.attest(closed.round_root)
    world.request(0, wallet=STRANGER)
    world.request(0)
    await world.move_to_round(2)

    async with world.running() as role:
        await world.wait_state(0, "confirmed")
        await world.move_to_round(4)
        await world.wait_request("claimed")
        await world.wait_for(lambda: _is_true(bool(world.reports)))
        assert role.health().state is HealthState.READY

    assert await world.balance() == earned(closed)


# --------------------------------------------------------------------------- several hubs


async def test_settler_takes_from_the_second_hub_what_the_first_has_not(world: SettlerWorld) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root)
    world.request(0)
    await world.move_to_round(2)
    here = f"http://127.0.0.1:{world.port}"

    async with world.running(hub_url="http://127.0.0.1:9", hub_urls=(here,)) as role:
        await world.wait_state(0, "confirmed")
        await world.move_to_round(4)
        await world.wait_request("claimed")
        assert "http://127.0.0.1:9: EMC-1301" in role.health().reason

    assert await world.balance() == earned(closed)


async def test_settler_with_one_lying_hub_believes_the_other(world: SettlerWorld) -> None:
    """The first hub serves another bundle of the round; requests come from both."""
    closed = world.close_round(0)
    world.attest(closed.round_root)
    world.request(0)
    await world.move_to_round(2)
    lies = dict(world.bundles)
    lies[0] = world.bundles[0][:-1]
    here = f"http://127.0.0.1:{world.port}"

    async with liar(world, lies) as port, world.running(hub_url=f"http://127.0.0.1:{port}", hub_urls=(here,)):
        await world.wait_state(0, "confirmed")
        await world.move_to_round(4)
        await world.wait_request("claimed")

    assert len(await world.list_requests()) == 1
    assert await world.balance() == earned(closed)


@asynccontextmanager
async def liar(world: SettlerWorld, bundles: dict[int, bytes]) -> AsyncIterator[int]:
    """A hub that lists what the world's lists, and serves other bundles."""
    other = replace(world, bundles=bundles)
    async with trio.open_nursery() as nursery:
        yield await nursery.start(partial(serve_http, other.serve, host="127.0.0.1", port=0))
        nursery.cancel_scope.cancel()


# --------------------------------------------------------------------------- exactly once


async def test_two_settlers_race_for_a_claim_and_it_is_paid_once(world: SettlerWorld, tmp_path: Path) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root)
    world.request(0)
    await world.move_to_round(2)
    async with world.running():
        await world.wait_state(0, "confirmed")
    await world.move_to_round(4)
    rival = make_key("rival")
    await _give_gas(world, rival)
    before = await world.chain.distributor.fetch_total_claimed()

    async with open_ledger(tmp_path / "rival.db", {"settler": MIGRATIONS}) as ledger:
        both = replace(world, ledger=ledger)
        async with world.running(), world.running(ledger=ledger, key=rival):
            ends = {await _wait_end(world), await _wait_end(both)}

    assert "claimed" in ends
    assert ends <= {"claimed", "refused"}
    assert await world.balance() == earned(closed)
    assert await world.chain.distributor.fetch_total_claimed() - before == earned(closed)


async def _wait_end(world: SettlerWorld) -> str:
    async def ended() -> bool:
        return any(row["state"] in ("claimed", "refused") for row in await world.list_requests())

    await world.wait_for(ended)
    return str((await world.list_requests())[0]["state"])


async def test_claim_that_a_reorganisation_takes_back_is_sent_again_and_paid_once(
    world: SettlerWorld, tmp_path: Path
) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root)
    world.request(0)
    await world.move_to_round(2)
    async with world.running():
        await world.wait_state(0, "confirmed")
    await world.move_to_round(4)
    fork = tmp_path / "fork.sqlite"
    for file in world.folder.glob("chain.sqlite*"):
        shutil.copy(file, fork.with_name(file.name.replace("chain", "fork")))
    store = ChainStore(fork, CHAIN_ID)
    forked = OfflineRpc(EvmChain(store, CHAIN_ID))
    switch = SwitchRpc(world.network.rpc)

    async with world.running(rpc=switch):
        row = await world.wait_request("claimed")
        before = row["tx_hash"]
        now_s = (await world.chain.head()).timestamp_s
        for step in range(3):
            await forked.mine(now_s + 1 + step)
        switch.target = deaf = DeafRpc(forked)
        other = Chain(ChainConfig(("http://127.0.0.1:1",), confirmations=1), world.deployment, forked)
        assert await other.distributor.fetch_claimed(WALLET.address) == 0
        await world.wait_request("submitted")
        deaf.sends = True

        async def is_paid_again() -> bool:
            return bool(await other.distributor.fetch_claimed(WALLET.address))

        await world.wait_for(is_paid_again)
        row = await world.wait_request("claimed")
        await world.wait_polls()

    assert row["tx_hash"] == before
    assert await other.token.fetch_balance(RECIPIENT) == earned(closed)
    assert await other.distributor.fetch_extraction_nonce(WALLET.address) == 1
    store.close()


async def test_somebody_elses_claim_that_a_reorganisation_takes_back_is_sent_by_us(
    world: SettlerWorld, tmp_path: Path
) -> None:
    """The rival's payment was all we saw; on the other branch nobody has paid."""
    closed = world.close_round(0)
    world.attest(closed.round_root)
    world.request(0)
    await world.move_to_round(2)
    async with world.running():
        await world.wait_state(0, "confirmed")
    await world.move_to_round(4)
    async with world.running():
        await world.wait_request("claimed")
    await world.ledger.write(
        lambda con: con.execute(
            "UPDATE settler_extractions SET reason = 'claimed by somebody else', attempt = 1"
        ).close()
    )
    fork = PaidLess(world.network.rpc, world.deployment.distributor)

    async with world.running(rpc=fork):
        row = await world.wait_request("refused")

    assert row["attempt"] >= 2
    assert await world.balance() == earned(closed)


class SwitchRpc:
    """An endpoint that changes to another branch of the chain."""

    def __init__(self, target: Any) -> None:
        self.target = target

    async def call(self, method: str, *params: Any) -> Any:
        return await self.target.call(method, *params)


class DeafRpc(SwitchRpc):
    """An endpoint that takes transactions and mines none, until `sends`."""

    sends = False

    async def call(self, method: str, *params: Any) -> Any:
        if method == "eth_sendRawTransaction" and not self.sends:
            return "0x" + keccak(bytes.fromhex(params[0][2:])).hex()
        return await super().call(method, *params)


class PaidLess(SwitchRpc):
    """A branch on which the wallet was not paid, by its first answers."""

    def __init__(self, target: Any, distributor: str) -> None:
        super().__init__(target)
        self.distributor = distributor
        self.left = 1

    async def call(self, method: str, *params: Any) -> Any:
        answer = await super().call(method, *params)
        is_claimed = method == "eth_call" and params[0]["input"].startswith(CLAIMED_SELECTOR)
        if is_claimed and self.left:
            self.left -= 1
            return "0x" + bytes(32).hex()
        return answer


CLAIMED_SELECTOR = "0x" + keccak(b"claimed(address)")[:4].hex()


async def _is_true(value: bool) -> bool:
    return value


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
