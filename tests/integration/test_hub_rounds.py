"""Rounds of a running hub: evidence in, one sealed bundle out that an audit accepts, and its consequences."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from emcd.accounting.audit import audit_bundle, check_seal
from emcd.accounting.expectation import Expectation
from emcd.accounting.reward_tree import verify_reward
from emcd.net.http_client import request
from emcd.proto.address import parse_hash
from emcd.proto.bundle import Bundle
from emcd.proto.bundle_codec import decode_bundle
from emcd.proto.hashing import keccak
from emcd.proto.json_form import to_json
from emcd.proto.messages import Extraction, RoundRoot, Verdict
from emcd.testing import make_key
from emcd.types import Address
from emcd_hub.billing.queries import find_imbalance, vault_account
from tests.support.hub_rounds import (
    StubChain,
    StubValidator,
    list_assignments,
    quick_deployment,
    running_validators,
    wallet_of,
)
from tests.support.hub_world import (
    DOMAIN,
    HUB_KEY,
    MODEL,
    HubWorld,
    StubNode,
    node_key,
    running_world,
)


@dataclass
class Network:
    """A hub with a chain, four validators and two nodes."""

    world: HubWorld
    chain: StubChain
    validators: list[StubValidator]
    nodes: list[StubNode]

    @property
    def params(self) -> Any:
        return self.chain.deployment.params

    def now_round(self) -> int:
        return int(self.params.round_at(self.chain.clock.now_ms()))

    async def until_round(self, index: int) -> None:
        with trio.fail_after(60):
            while self.now_round() < index:
                await trio.sleep(0.02)

    async def get(self, path: str) -> Any:
        answer = await request("GET", self.world.url + path, timeout_s=10, max_bytes=1 << 26)
        assert answer.status == 200, answer.body
        return answer.json()

    async def play(self, index: int, *, verdicts: dict[Address, Verdict] | None = None) -> None:
        """Let all validators do a round: plans, probes, reveals."""
        for validator in self.validators:
            validator.verdicts = verdicts or {}
            validator.commit(index)
        await self.until_round(index)
        await self.wait_view(index)
        beacon = (await self.world.rows(f"SELECT beacon_block_hash FROM hub_rounds WHERE round = {index}"))[
            0
        ][0]
        assignments = list_assignments(self.chain, beacon, index)
        for validator in self.validators:
            validator.hub_url, validator.api_key = self.world.url, self.world.api_key
            await validator.probe(index, assignments)
        await self.until_round(index + 1)
        for validator in self.validators:
            validator.reveal(index)

    async def wait_view(self, index: int) -> None:
        with trio.fail_after(10):
            while not await self.world.rows(f"SELECT 1 FROM hub_rounds WHERE round = {index}"):
                await trio.sleep(0.02)

    async def wait_closed(self, index: int) -> tuple[bytes, Bundle]:
        """The bundle of a round, audited against what the chain says."""
        with trio.fail_after(30):
            while True:
                answer = await request(
                    "GET", f"{self.world.url}/api/rounds/{index}/bundle", timeout_s=10, max_bytes=1 << 26
                )
                if answer.status == 200:
                    break
                await trio.sleep(0.05)
        bundle_hash = parse_hash(answer.headers["x-emc-bundle-hash"])
        seal = bytes.fromhex(answer.headers["x-emc-bundle-seal"][2:])
        assert check_seal(DOMAIN, HUB_KEY.address, index, bundle_hash, seal)
        deployment = self.chain.deployment
        expected = Expectation(
            bundle_hash=bundle_hash,
            round=index,
            hub=HUB_KEY.address,
            chain_id=deployment.chain_id,
            staking=deployment.staking,
            distributor=deployment.distributor,
            params=deployment.params,
            prices=(deployment.prices,),
            validators=await self.chain.fetch_validator_set(0, at=await self.chain.head()),
        )
        outcome = audit_bundle(answer.body, expected)
        assert outcome.ok, outcome.difference
        return answer.body, decode_bundle(answer.body)

    async def call(self, **fields: Any) -> str:
        headers = {"authorization": f"Bearer {self.world.api_key}"}
        body = {"model": MODEL, "input": "hello", **fields}
        answer = await request("POST", self.world.url + "/v1/embeddings", json=body, headers=headers)
        assert answer.status == 200
        return answer.headers["x-emc-call-id"]


@asynccontextmanager
async def network(folder: Path, *, round_s: int = 2, **settings: Any) -> AsyncIterator[Network]:
    deployment = quick_deployment(round_s)
    chain = StubChain(deployment)
    nodes = [StubNode(node_key(n)) for n in range(2)]
    chain.nodes = [node.key.address for node in nodes]
    settings = {
        "collect_poll_s": 0.1,
        "registry_poll_s": 0.2,
        "admit": "staked",
        "allowed_nodes": (),
        **settings,
    }
    async with running_validators(chain) as validators:
        async with running_world(folder, deployment=deployment, chain=chain, **settings) as world:
            for node in nodes:
                await world.add_node(node)
                world.nursery.start_soon(beat, node)
            yield Network(world, chain, validators, nodes)


async def beat(node: StubNode) -> None:
    """A status several times a round."""
    while node.link is not None and not node.link.closed.is_set():
        await node.send_status()
        await trio.sleep(0.3)


def result_of(bundle: Bundle, node: Address) -> Any:
    return next(entry for entry in bundle.results if entry.node == node)


async def buy(net: Network, credits_micro: int, index: int = 0) -> None:
    args = {
        "account": vault_account(net.world.account_id),
        "payer": make_key("payer").address,
        "amountWei": 10**18,
        "creditsMicro": credits_micro,
        "index": index,
    }
    await net.chain.watchers[0].feed(("vault", "CreditsBought", args))


async def test_round_with_probes_and_calls_closes_into_an_audited_bundle(tmp_path: Path) -> None:
    async with network(tmp_path, granted_micro=10**9) as net:
        index = net.now_round() + 1
        await buy(net, 10**9)
        assert await net.world.balances() == (10**9, 10**9)
        await net.play(index)
        data, bundle = await net.wait_closed(index)
        for node in net.nodes:
            entry = result_of(bundle, node.key.address)
            assert entry.reason == ""
            assert entry.credits_micro == net.params.standard_task_micro
            assert any(entry.reward_wei)
        assert len(bundle.reveals) == len(bundle.commitments) == 4
        assert all(call.receipt_ref is not None for call in bundle.calls)

        detail = await net.get(f"/api/rounds/{index}")
        assert detail["state"] in ("closed", "attested")
        rows = {row["node"]: row for row in detail["participants"]}
        shown = rows[net.nodes[0].key.address]
        assert (shown["role"], shown["reason"]) == ("compute", "")
        assert [item["verdict"] for item in shown["verdicts"]] == ["PASS", "PASS"]
        total = sum(int(row["reward_wei"]) for row in detail["participants"])
        assert total == int(detail["issue_wei"]) > 0
        assert audit_bundle(data).ok


async def test_call_paid_from_the_vault_weighs_and_a_granted_one_does_not(tmp_path: Path) -> None:
    async with network(tmp_path, granted_micro=0) as net:
        await buy(net, 10**9)
        index = net.now_round() + 1
        await net.until_round(index)
        await net.wait_view(index)
        rich = net.nodes[0].key.address
        for _ in range(3):
            await net.call(provider={"only": [rich]})
        await buy(net, 5, index=1)
        _, bundle = await net.wait_closed(index)
        assert [(item.index, item.credits_micro) for item in bundle.deposits] == [(1, 5)]
        assert result_of(bundle, rich).credits_micro == 3 * 50_000
        assert result_of(bundle, net.nodes[1].key.address).reason == "no-success"
        assert await net.world.ledger.read(find_imbalance) is None


async def test_confirmed_strike_takes_the_round_from_the_cheat(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        index = net.now_round() + 1
        cheat = net.nodes[1].key.address
        await net.play(index, verdicts={cheat: Verdict.FAIL})
        calls = await net.world.rows("SELECT call_id, delivery FROM hub_calls")
        accused = {p.call_id for v in net.validators for p in v.probes.get(index, ()) if p.node == cheat}
        from emcd.proto.records import Delivery

        for call_id, delivery in calls:
            if call_id in accused:
                receipt_hash = msgspec.msgpack.decode(delivery, type=Delivery).receipt_hash
                for validator in net.validators:
                    validator.vote(index, call_id, receipt_hash, Verdict.FAIL)
        _, bundle = await net.wait_closed(index)
        assert result_of(bundle, cheat).reason == "verdict"
        assert not any(result_of(bundle, cheat).reward_wei)
        assert result_of(bundle, net.nodes[0].key.address).reason == ""
        assert len(bundle.votes) == 8


async def test_statements_of_others_lies_and_silence_are_left_out(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        index = net.now_round() + 1
        forger, babbler, silent, honest = net.validators
        await net.play(index)
        page = forger.pages[f"/reveals/{index}"]
        forger.pages[f"/reveals/{index}"] = {**page, "signature": "0x" + "11" * 65}
        babbler.pages[f"/reveals/{index}"] = b"\xff" * 1000
        babbler.pages[f"/rounds/{index}"] = {"reveals": [{"reveal": 1}] * 64, "votes": "no"}
        silent.is_silent = True
        _, bundle = await net.wait_closed(index)
        assert [entry.reveal.validator for entry in bundle.reveals] == [honest.address]


async def test_peers_page_completes_what_a_validator_hides_from_the_hub(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        index = net.now_round() + 1
        await net.play(index)
        hider, friend = net.validators[:2]
        held = hider.pages.pop(f"/reveals/{index}")
        friend.pages[f"/rounds/{index}"] = {"commitments": [], "reveals": [held], "votes": []}
        _, bundle = await net.wait_closed(index)
        assert hider.address in [entry.reveal.validator for entry in bundle.reveals]


async def test_late_receipts_are_carried_into_a_later_bundle(tmp_path: Path) -> None:
    async with network(tmp_path, granted_micro=0) as net:
        await buy(net, 10**9)
        index = net.now_round() + 1
        await net.until_round(index)
        await net.wait_view(index)
        late = net.nodes[0]
        late.batching = False
        call_id = await net.call(provider={"only": [late.key.address]})
        _, bundle = await net.wait_closed(index)
        ids = ["call_" + call.forward.call_id.hex() for call in bundle.calls]
        assert call_id not in ids
        late.batching = True
        seen: list[Any] = []
        for later in range(index + 1, index + 4):
            already = len(seen)
            _, bundle = await net.wait_closed(later)
            seen += [c for c in bundle.calls if "call_" + c.forward.call_id.hex() == call_id]
            if already:
                break
        assert len(seen) == 1
        assert seen[0].receipt_ref is not None


async def test_receipt_that_a_node_files_with_a_validator_only_is_proven_in_the_next_bundle(
    tmp_path: Path,
) -> None:
    async with network(tmp_path, granted_micro=0) as net:
        await buy(net, 10**9)
        index = net.now_round() + 1
        await net.until_round(index)
        await net.wait_view(index)
        hider = net.nodes[0]
        hider.batching = False
        call_id = await net.call(provider={"only": [hider.key.address]})
        message = hider.make_batch((hider.receipts[-1],))
        filed = {"call_id": call_id, "batch": to_json(message.batch)}
        forged = {**filed, "signature": "0x" + make_key("x").sign(DOMAIN, message.batch).hex()}
        filed["signature"] = "0x" + message.signature.hex()
        liar, witness = net.validators[:2]
        for wanted in range(index, index + 3):
            liar.pages[f"/omissions/{wanted}"] = {"omissions": [forged]}
            witness.pages[f"/omissions/{wanted}"] = {"omissions": [filed, filed]}
        _, bundle = await net.wait_closed(index)
        [call] = [c for c in bundle.calls if "call_" + c.forward.call_id.hex() == call_id]
        assert call.receipt_ref is not None


async def test_attestations_make_the_round_attested_and_events_move_it_on(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        index = net.now_round() + 1
        await net.play(index)
        data, bundle = await net.wait_closed(index)
        outcome = audit_bundle(data)
        root = outcome.round_root
        for validator in net.validators[:3]:
            validator.attest(root)
        net.validators[3].attest(msgspec.structs.replace(root, round=index + 7))
        net.validators[3].pages[f"/attestations/{index}"] = net.validators[3].pages[
            f"/attestations/{index + 7}"
        ]
        await wait_state(net, index, "attested")
        assert len((await net.get(f"/api/rounds/{index}"))["attestations"]) == 3
        net.validators[3].refuse(index, "EMC-1823")
        with trio.fail_after(10):
            while not (detail := await net.get(f"/api/rounds/{index}"))["refusals"]:
                await trio.sleep(0.05)
        assert [item["code"] for item in detail["refusals"]] == ["EMC-1823"]

        await publish(net, root, active_at_s=2**40)
        await wait_state(net, index, "published")
        wallet = wallet_of(net.nodes[0].key.address)
        rewards = await net.get(f"/api/wallets/{wallet}/rewards")
        assert int(rewards["published_wei"]) > 0
        assert rewards["proof"] is None


async def publish(net: Network, root: RoundRoot, *, active_at_s: int) -> None:
    args = {
        "round": root.round,
        "publisher": make_key("settler").address,
        "bundleHash": root.bundle_hash,
        "root": root.root,
        "cumulativeWei": root.cumulative_wei,
        "feeWei": 0,
        "activeAt": active_at_s,
    }
    await net.chain.watchers[0].feed(("distributor", "RootPublished", args))


async def wait_state(net: Network, index: int, state: str) -> None:
    with trio.fail_after(20):
        while True:
            rounds = (await net.get("/api/rounds"))["rounds"]
            if any(entry["round"] == index and entry["state"] == state for entry in rounds):
                return
            await trio.sleep(0.05)


async def test_rewards_go_from_settled_to_claimed_with_a_proof(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        index = net.now_round() + 1
        wallet = wallet_of(net.nodes[0].key.address)
        await net.play(index)
        open_view = await net.get(f"/api/wallets/{wallet}/rewards")
        assert int(open_view["accrued_wei"]) > 0
        assert open_view["accrued_is_estimate"]
        data, bundle = await net.wait_closed(index)
        reward = int.from_bytes(result_of(bundle, net.nodes[0].key.address).reward_wei, "big")
        rewards = await net.get(f"/api/wallets/{wallet}/rewards")
        assert int(rewards["settled_wei"]) >= reward > 0
        await publish(net, audit_bundle(data).round_root, active_at_s=1)
        rewards = await net.get(f"/api/wallets/{wallet}/rewards")
        proof = rewards["proof"]
        assert int(rewards["claimable_wei"]) == int(proof["cumulative_wei"]) >= reward
        assert proof["round"] == index
        siblings = [parse_hash(item) for item in proof["proof"]]
        assert verify_reward(parse_hash(proof["root"]), wallet, int(proof["cumulative_wei"]), siblings)
        claimed = {
            "wallet": wallet,
            "recipient": wallet,
            "round": index,
            "amountWei": int(proof["cumulative_wei"]),
            "cumulativeWei": int(proof["cumulative_wei"]),
        }
        await net.chain.watchers[0].feed(("distributor", "Claimed", claimed))
        rewards = await net.get(f"/api/wallets/{wallet}/rewards")
        assert (rewards["claimable_wei"], rewards["claimed_wei"]) == ("0", proof["cumulative_wei"])


async def test_void_round_is_built_past_and_its_calls_are_carried(tmp_path: Path) -> None:
    async with network(tmp_path, granted_micro=0) as net:
        await buy(net, 10**9)
        index = net.now_round() + 1
        await net.until_round(index)
        await net.wait_view(index)
        call_id = await net.call()
        data, _ = await net.wait_closed(index)
        await publish(net, audit_bundle(data).round_root, active_at_s=2**40)
        await net.chain.watchers[0].feed(
            ("distributor", "RoundVoided", {"round": index, "vetoedRound": index})
        )
        _, bundle = await net.wait_closed(index + 1)
        assert bundle.header.previous_round < index
        assert call_id in ["call_" + call.forward.call_id.hex() for call in bundle.calls]
        rounds = (await net.get("/api/rounds"))["rounds"]
        assert {entry["round"]: entry["state"] for entry in rounds}[index] == "void"


async def test_restarted_hub_keeps_its_bundles_and_closes_what_it_missed(tmp_path: Path) -> None:
    deployment = quick_deployment(rounds_ago=-1)
    chain = StubChain(deployment)
    chain.nodes = [node_key(0).address]
    settings: dict[str, Any] = {"collect_poll_s": 0.1, "admit": "staked", "allowed_nodes": ()}

    async def hash_of(world: HubWorld, index: int) -> str:
        with trio.fail_after(20):
            while True:
                answer = await request("GET", f"{world.url}/api/rounds/{index}/bundle", max_bytes=1 << 24)
                if answer.status == 200:
                    return answer.headers["x-emc-bundle-hash"] + answer.headers["x-emc-bundle-seal"]
                await trio.sleep(0.05)

    async with running_validators(chain):
        await trio.sleep(max(0, deployment.params.genesis_time_s - chain.clock.now_ms() / 1000 + 0.05))
        async with running_world(tmp_path, deployment=deployment, chain=chain, **settings) as world:
            await world.add_node(StubNode(node_key(0)))
            first = await hash_of(world, 0)
        await trio.sleep(2 * deployment.params.round_s)
        async with running_world(tmp_path, deployment=deployment, chain=chain, **settings) as world:
            assert await hash_of(world, 0) == first
            missed = deployment.params.round_at(chain.clock.now_ms()) - 2
            for index in range(1, missed + 1):
                assert await hash_of(world, index)


async def test_purchase_is_credited_once_and_undone_with_its_block(tmp_path: Path) -> None:
    async with network(tmp_path, granted_micro=0) as net:
        await buy(net, 700, index=0)
        await buy(net, 300, index=1)
        assert await net.world.balances() == (0, 1000)
        watcher = net.chain.watchers[0]
        await watcher.sink.rollback(watcher.block - 1)
        assert await net.world.balances() == (0, 700)
        assert net.world.plane.book.find(net.world.account_id).usable_vault_micro == 700
        await buy(net, 300, index=1)
        assert await net.world.balances() == (0, 1000)
        assert await net.world.ledger.read(find_imbalance) is None


async def test_purchase_for_nobody_we_know_is_kept_and_credits_nobody(tmp_path: Path) -> None:
    async with network(tmp_path, granted_micro=0) as net:
        args = {
            "account": keccak(b"nobody"),
            "payer": make_key("payer").address,
            "amountWei": 5,
            "creditsMicro": 5,
            "index": 0,
        }
        await net.chain.watchers[0].feed(("vault", "CreditsBought", args))
        assert await net.world.balances() == (0, 0)
        assert await net.world.rows("SELECT account_id, credits_micro FROM hub_deposits") == [(None, 5)]


def extraction_page(
    net: Network,
    wallet_name: str,
    *,
    signer: str = "",
    edit: Callable[[Extraction], Extraction] = lambda e: e,
) -> tuple[Address, dict[str, Any]]:
    key = make_key(wallet_name)
    extraction = edit(
        Extraction(key.address, key.address, 0, True, 3, net.chain.clock.now_ms() // 1000 + 3600)
    )
    signature = make_key(signer or wallet_name).sign(net.chain.deployment.distributor_domain, extraction)
    return key.address, {"extraction": to_json(extraction), "signature": "0x" + signature.hex()}


async def ask(net: Network, wallet: Address, page: Any) -> Any:
    return await request("POST", f"{net.world.url}/api/wallets/{wallet}/extractions", json=page)


async def test_extraction_is_taken_listed_and_ends_with_its_claim(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        wallet_name = f"wallet of {net.nodes[0].key.address}"
        wallet, page = extraction_page(net, wallet_name)
        answer = await ask(net, wallet, page)
        assert answer.status == 202
        assert answer.json()["state"] in ("requested", "waiting")
        assert (await ask(net, wallet, page)).status == 202
        listed = (await net.get("/api/extractions?state=requested"))["extractions"]
        assert [item["extraction"] for item in listed] == [page["extraction"]]
        await publish(net, RoundRoot(0, keccak(b"b"), keccak(b"r"), 5), active_at_s=1)
        assert (await net.get(f"/api/wallets/{wallet}/extractions"))["extractions"][0][
            "state"
        ] == "synchronised"
        assert len((await net.get("/api/extractions?state=synchronised"))["extractions"]) == 1
        await net.chain.watchers[0].feed(("distributor", "ExtractionUsed", {"wallet": wallet, "nonce": 3}))
        assert (await net.get(f"/api/wallets/{wallet}/extractions"))["extractions"][0]["state"] == "claimed"
        assert (await net.get("/api/extractions"))["extractions"] == []


@pytest.mark.parametrize(
    ("status", "signer", "changes"),
    [
        (401, "somebody else", {}),
        (400, "", {"deadline": 5}),
        (400, "", {"deadline": 2**40}),
        (400, "", {"through_round": 10**6}),
        (400, "", {"recipient": "0x" + "0" * 40}),
    ],
)
async def test_extraction_that_is_wrong_is_refused(
    tmp_path: Path, status: int, signer: str, changes: dict[str, Any]
) -> None:
    async with network(tmp_path) as net:
        wallet_name = f"wallet of {net.nodes[0].key.address}"
        wallet, page = extraction_page(
            net, wallet_name, signer=signer, edit=lambda e: msgspec.structs.replace(e, **changes)
        )
        assert (await ask(net, wallet, page)).status == status
        stranger, strange = extraction_page(net, "a stranger")
        assert (await ask(net, stranger, strange)).status == 404
        assert (await ask(net, stranger, page)).status == 401
        assert (await ask(net, wallet, {"extraction": {}, "signature": ""})).status == 400
        assert (await net.get("/api/extractions"))["extractions"] == []


async def test_chain_that_is_away_degrades_the_hub_and_calls_go_on(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        net.chain.broken = True
        with trio.fail_after(10):
            while net.world.role.health().state.value != "degraded":
                await trio.sleep(0.05)
        await net.call()
        net.chain.broken = False
        with trio.fail_after(20):
            while net.world.role.health().state.value != "ready":
                await trio.sleep(0.05)


async def test_node_that_withdrew_its_stake_is_dismissed(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        gone = net.chain.nodes.pop()
        await net.world.until(lambda: net.world.plane.board.find(gone) is None)
        assert len(net.world.plane.board.list_entries()) == 1


async def test_pages_of_rounds_refuse_nonsense(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        for path, status in (
            ("/api/rounds/x", 400),
            ("/api/rounds/-1", 400),
            ("/api/rounds/99999", 404),
            ("/api/rounds/99999/bundle", 404),
            ("/api/wallets/0x12/rewards", 400),
            (f"/api/wallets/{net.nodes[0].key.address.lower()}/rewards", 400),
            ("/api/extractions?state=all", 400),
        ):
            answer = await request("GET", net.world.url + path)
            assert answer.status == status, path
            assert "emc_code" in answer.json()["error"]
