"""A settler publishes what more than 2/3 of the power signed, once, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio

from emcd.accounting.emission import issue_wei
from emcd.chain import Failed, PublicationState
from emcd.money import encode_wei
from emcd.proto.address import hex_hash
from emcd.proto.eip712 import Domain
from emcd.proto.json_form import to_json
from emcd.proto.messages import RoundRoot, Veto
from emcd.proto.params import devnet_params
from emcd.role import HealthState
from emcd.testing import make_key
from emcd.types import ParticipantRole
from tests.support.network import GENESIS_S, HOLDER
from tests.support.round_world import edited
from tests.support.settler_world import (
    SETTLER,
    VALIDATORS,
    LyingOutbox,
    Prepared,
    SettlerWorld,
    prepare,
    settler_world,
    write_attestation,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("chain")
    return trio.run(prepare, folder)


@pytest.fixture
async def world(prepared: Prepared, tmp_path: Path) -> AsyncIterator[SettlerWorld]:
    async with settler_world(prepared, tmp_path) as made:
        yield made


async def test_settler_attested_round_is_published_once(world: SettlerWorld) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root)
    await world.move_to_round(2)

    async with world.running() as role:
        row = await world.wait_state(0, "confirmed")
        await world.wait_polls()
        assert role.health().state is HealthState.READY

    publication = await world.chain.distributor.fetch_publication(0)
    assert publication.state is PublicationState.PENDING
    assert (publication.root, publication.bundle_hash) == (closed.result.root, closed.bundle_hash)
    assert publication.publisher == SETTLER.address
    assert row["tx_hash"] is not None
    assert await world.count_sent() == 1


async def test_settler_open_and_grace_rounds_are_not_asked_for(world: SettlerWorld) -> None:
    world.attest(world.close_round(0).round_root)
    await world.move_to_round(1, offset_s=14)

    async with world.running():
        await world.wait_polls()

    assert not [path for path in world.asked if "attestations" in path]


async def test_settler_root_is_published_once_an_epoch_by_default(world: SettlerWorld) -> None:
    world.attest(world.close_round(10).round_root)
    world.attest(world.close_round(11).round_root)
    await world.move_to_round(12)

    async with world.running(publish_every_rounds=None):
        await world.wait_polls()
        assert await world.find_row(10) is None
        await world.move_to_round(13)
        await world.wait_state(11, "confirmed")

    assert await world.chain.distributor.find_last_round() == 11
    assert await world.count_sent() == 1


async def test_settler_too_little_power_waits_for_more(world: SettlerWorld) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root, "v1", "v2")
    await world.move_to_round(2)

    async with world.running():
        await world.wait_state(0, "collecting")
        await world.wait_polls()
        assert (await world.find_row(0))["state"] == "collecting"
        assert await world.count_sent() == 0
        world.attest(closed.round_root, "v4")
        await world.wait_state(0, "confirmed")


async def hang() -> tuple[int, bytes]:
    await trio.sleep(3600)
    return 200, b""


def bad_attestations(world: SettlerWorld, root: RoundRoot) -> dict[str, Any]:
    domain = world.deployment.distributor_domain
    v4, stranger = make_key("v4"), make_key("stranger")
    other_chain = Domain(1, world.deployment.distributor)
    signed = write_attestation(root, v4.sign(domain, root))
    other_round = edited(root, round=1)
    no_root = edited(root, root=bytes(32))
    return {
        "forged": (200, write_attestation(root, stranger.sign(domain, root))),
        "of another member": (200, write_attestation(root, make_key("v1").sign(domain, root))),
        "for another chain": (200, write_attestation(root, v4.sign(other_chain, root))),
        "for another contract": (
            200,
            write_attestation(root, v4.sign(world.deployment.staking_domain, root)),
        ),
        "of another round": (200, write_attestation(other_round, v4.sign(domain, other_round))),
        "of no root": (200, write_attestation(no_root, v4.sign(domain, no_root))),
        "empty signature": (200, write_attestation(root, b"")),
        "zero signature": (200, write_attestation(root, bytes(65))),
        "garbage": (200, b"\xff\xfe{"),
        "nested": (200, b"[" * 50_000),
        "another shape": (200, b'{"round_root":[],"signature":"0x"}'),
        "unknown field": (
            200,
            msgspec.json.encode({"round_root": {**to_json(root), "x": 1}, "signature": "0x"}),
        ),
        "error": (500, signed),
        "redirect": (302, signed),
        "none": (404, b""),
        "too long": (200, signed + b" " * (1 << 17)),
        "never": hang,
    }


CASES = [
    "forged",
    "of another member",
    "for another chain",
    "for another contract",
    "of another round",
    "of no root",
    "empty signature",
    "zero signature",
    "garbage",
    "nested",
    "another shape",
    "unknown field",
    "error",
    "redirect",
    "none",
    "too long",
    "never",
]


async def test_settler_bad_attestations_make_no_quorum_and_stop_none(world: SettlerWorld) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root, "v1", "v2")
    await world.move_to_round(2)
    cases = bad_attestations(world, closed.round_root)
    assert set(cases) == set(CASES)

    async with world.running(peer_timeout_s=0.5):
        for name, answer in cases.items():
            world.attestations["v3", 0] = world.attestations["v4", 0] = answer
            await world.wait_for(lambda: _asked_again(world))
            assert await world.count_sent() == 0, name
        world.attest(closed.round_root, "v3")
        await world.wait_state(0, "confirmed")


async def _asked_again(world: SettlerWorld, times: int = 2) -> bool:
    """v4 was asked `times` more, and every answer has been dealt with."""
    before = world.asked.count("/v4/attestations/0")
    with trio.fail_after(10):
        while world.asked.count("/v4/attestations/0") < before + times:
            await trio.sleep(0.02)
    return True


@pytest.mark.parametrize("case", CASES)
async def test_settler_one_bad_validator_of_four_stalls_nobody(world: SettlerWorld, case: str) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root, "v1", "v2", "v3")
    world.attestations["v4", 0] = bad_attestations(world, closed.round_root)[case]
    await world.move_to_round(2)

    async with world.running(peer_timeout_s=0.5):
        await world.wait_state(0, "confirmed")

    assert (await world.chain.distributor.fetch_publication(0)).root == closed.result.root


async def test_settler_attestation_by_an_outsider_does_not_count(world: SettlerWorld) -> None:
    """A validator whose stake weighs only from the next epoch is bound, staked, and no member."""
    closed = world.close_round(0)
    await world.move_to_round(1)
    late = await world.network.join("v5", ParticipantRole.VALIDATOR)
    url = f"http://127.0.0.1:{world.port}/v5"
    await world.network.send(HOLDER, world.chain.staking.submit_set_endpoint(late.address, url))
    world.attest(closed.round_root, "v1", "v2", "v5")
    await world.move_to_round(2)

    async with world.running():
        await world.wait_polls(5)

    assert (await world.find_row(0))["state"] == "collecting"
    assert "/v5/attestations/0" not in world.asked


async def test_settler_two_outcomes_without_a_majority_end_void(world: SettlerWorld) -> None:
    closed = world.close_round(0)
    other = edited(closed.round_root, root=b"\x01" * 32)
    world.attest(closed.round_root, "v1", "v2")
    world.attest(other, "v3", "v4")
    await world.move_to_round(2)

    async with world.running():
        await world.wait_state(0, "collecting")
        await world.move_to_round(13)
        row = await world.wait_state(0, "void")

    assert row["reason"] == "no quorum in time"
    assert await world.count_sent() == 0


async def test_settler_minority_outcome_does_not_hinder(world: SettlerWorld) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root, "v1", "v2", "v3")
    world.attest(edited(closed.round_root, bundle_hash=b"\x02" * 32), "v4")
    await world.move_to_round(2)

    async with world.running():
        await world.wait_state(0, "confirmed")

    assert (await world.chain.distributor.fetch_publication(0)).bundle_hash == closed.bundle_hash


async def has_attestations(world: SettlerWorld, name: str, count: int) -> bool:
    """Whether the settler keeps so many outcomes of a validator."""
    sql = "SELECT count(*) FROM settler_attestations WHERE validator = ?"
    rows = await world.ledger.read(lambda con: con.execute(sql, (make_key(name).address,)).fetchone())
    return bool(rows[0] >= count)


async def test_settler_validator_that_signs_two_outcomes_counts_for_neither(world: SettlerWorld) -> None:
    closed = world.close_round(0)
    world.attest(edited(closed.round_root, root=b"\x01" * 32), "v3")
    await world.move_to_round(2)

    async with world.running():
        await world.wait_for(lambda: has_attestations(world, "v3", 1))
        world.attest(closed.round_root, "v1", "v2", "v3")
        await world.wait_for(lambda: has_attestations(world, "v3", 2))
        await world.wait_for(lambda: has_attestations(world, "v1", 1))
        await world.wait_polls(5)
        assert (await world.find_row(0))["state"] == "collecting"
        world.attest(closed.round_root, "v4")
        await world.wait_state(0, "confirmed")


async def test_settler_round_refused_by_validators_is_covered_by_the_next(world: SettlerWorld) -> None:
    first = world.close_round(0)
    world.attest(edited(first.round_root, root=b"\x01" * 32), "v1")
    closed = world.close_round(1)
    world.attest(closed.round_root)
    await world.move_to_round(3)

    async with world.running(publish_every_rounds=1):
        await world.wait_state(1, "confirmed")

    assert await world.chain.distributor.find_last_round() == 1


async def test_settler_round_published_by_another_is_confirmed_without_a_transaction(
    world: SettlerWorld,
) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root)
    await world.move_to_round(2)
    signatures = {
        make_key(name).address: make_key(name).sign(world.deployment.distributor_domain, closed.round_root)
        for name in VALIDATORS
    }

    good = world.attestations["v1", 0]
    assert isinstance(good, tuple)
    answer: tuple[int, bytes] = good

    async def publish_first() -> tuple[int, bytes]:
        """The other settler's transaction lands while this one collects."""
        if await world.chain.distributor.find_last_round() is None:
            call = world.chain.distributor.submit_publish(closed.round_root, signatures)
            await world.network.send(HOLDER, call)
        return answer

    world.attestations["v1", 0] = publish_first
    async with world.running():
        row = await world.wait_state(0, "confirmed")

    assert row["reason"] == "published by another settler"
    assert await world.count_sent() == 0


async def test_settler_vetoed_round_ends_void(world: SettlerWorld) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root)
    await world.move_to_round(2)

    async with world.running():
        await world.wait_state(0, "confirmed")
        veto = Veto(0, closed.bundle_hash, closed.result.root)
        signatures = {
            make_key(name).address: make_key(name).sign(world.deployment.distributor_domain, veto)
            for name in ("v1", "v2")
        }
        await world.network.send(HOLDER, world.chain.distributor.submit_veto(veto, signatures))
        row = await world.wait_state(0, "void")

    assert row["reason"] == "vetoed"


async def test_settler_published_round_becomes_active(world: SettlerWorld) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root)
    await world.move_to_round(2)

    async with world.running():
        await world.wait_state(0, "confirmed")
        await world.move_to_round(4)

        async def is_active() -> bool:
            return bool((await world.find_row(0))["is_active"])

        await world.wait_for(is_active)


async def test_settler_pause_of_the_guardian_holds_it_back(world: SettlerWorld) -> None:
    closed = world.close_round(0)
    world.attest(closed.round_root)
    await world.move_to_round(2)
    guardian = make_key("guardian")
    await world.network.rpc.call("eth_sendRawTransaction", await _fund(world, guardian.address))
    await world.network.send(guardian, world.chain.distributor.submit_pause(3600))

    async with world.running():
        await world.wait_state(0, "quorum")
        await world.wait_polls()
        assert await world.count_sent() == 0
        await world.network.send(guardian, world.chain.distributor.submit_unpause())
        await world.move_to_round(3)
        await world.wait_state(0, "confirmed")


async def _fund(world: SettlerWorld, account: Any) -> str:
    from tests.support.devchain import CHAIN_ID, ETHER, sign_raw

    nonce = int(await world.network.rpc.call("eth_getTransactionCount", HOLDER.address, "latest"), 16)
    raw = sign_raw(HOLDER, nonce=nonce, to=account, value=ETHER, chainId=CHAIN_ID)
    return hex_hash(raw)


async def test_settler_hub_that_is_away_does_not_stop_publishing(world: SettlerWorld) -> None:
    world.attest(world.close_round(0).round_root)
    world.requests = "nonsense"  # type: ignore[assignment]
    await world.move_to_round(2)

    async with world.running() as role:
        await world.wait_state(0, "confirmed")

        async def complains() -> bool:
            return role.health().state is HealthState.DEGRADED

        await world.wait_for(complains)
        assert "requests" in role.health().reason


async def test_settler_takes_the_fee_once_the_root_is_active(tmp_path: Path) -> None:
    fee_wei = 7 * 10**18
    params = edited(devnet_params(GENESIS_S), publish_fee_wei=encode_wei(fee_wei))
    folder = tmp_path / "network"
    folder.mkdir()
    async with settler_world(await prepare(tmp_path, params), folder) as world:
        closed = world.close_round(0)
        world.attest(closed.round_root)
        await world.move_to_round(2)

        async def is_paid() -> bool:
            return await world.balance(SETTLER.address) == fee_wei

        async with world.running():
            await world.wait_state(0, "confirmed")
            await world.wait_polls()
            assert not await is_paid()
            await world.move_to_round(4)
            await world.wait_for(is_paid)
            await world.wait_polls()

        assert closed.result.issue_wei + fee_wei == issue_wei(0)
        assert await world.count_sent() == 2


async def test_settler_free_empty_wallet_does_not_stop_the_boundary(world: SettlerWorld) -> None:
    """It asks for a round of its own before the boundary, and everything there is worth nothing to it."""
    first = world.close_round(0)
    world.attest(first.round_root)
    for index in (10, 11, 12, 13, 23):
        world.attest(world.close_round(index).round_root)
    await world.move_to_round(13)

    async with world.running(publish_every_rounds=None) as role:
        await world.wait_state(11, "confirmed")
        world.request(12, wallet=make_key("empty wallet"))
        await world.move_to_round(15)
        await world.wait_state(12, "collecting")
        await world.wait_polls()
        assert await world.count_sent() == 1
        del world.bundles[12]  # nor does a hub that has not the bundle of a round that nobody needs
        await world.move_to_round(25)
        await world.wait_state(23, "confirmed")
        assert "overdue" not in role.health().reason


async def test_settler_boundary_without_a_quorum_is_a_complaint(world: SettlerWorld) -> None:
    closed = world.close_round(11)
    world.attest(closed.round_root, "v1", "v2")
    await world.move_to_round(13)

    async with world.running(publish_every_rounds=None) as role:
        await world.wait_state(11, "collecting")
        await world.wait_polls()
        assert role.health().state is HealthState.READY
        await world.move_to_round(16)
        await world.wait_for(lambda: _says(role, "round 11 is due and not published: no quorum"))
        world.attest(closed.round_root)
        await world.wait_state(11, "confirmed")
        await world.wait_for(lambda: _says(role, ""))


async def _says(role: Any, text: str) -> bool:
    return text in role.health().reason if text else role.health().state is HealthState.READY


@pytest.mark.parametrize("name", ["NoQuorum", "OverSchedule", "RoundTooOld"])
async def test_settler_estimate_that_lies_ends_no_round(world: SettlerWorld, name: str) -> None:
    world.attest(world.close_round(0).round_root)
    await world.move_to_round(2)
    role = world.make_role()
    await world.set_up(role, "settler")
    lies = {"publish:0": Failed(name, "a lie")}
    role._publisher._outbox = cast("Any", LyingOutbox(role._outbox, lies))

    async with trio.open_nursery() as nursery:
        await nursery.start(role.run)
        await world.wait_state(0, "submitted")
        await world.wait_polls()
        world.clock.at_ms += 2000
        row = await world.wait_state(0, "confirmed")
        nursery.cancel_scope.cancel()

    assert row["attempt"] == 1
    assert await world.chain.distributor.find_last_round() == 0


async def test_settler_fee_refused_by_a_pause_is_asked_for_again(tmp_path: Path) -> None:
    fee_wei = 7 * 10**18
    params = edited(devnet_params(GENESIS_S), publish_fee_wei=encode_wei(fee_wei))
    folder = tmp_path / "network"
    folder.mkdir()
    async with settler_world(await prepare(tmp_path, params), folder) as world:
        world.attest(world.close_round(0).round_root)
        await world.move_to_round(2)
        role = world.make_role()
        await world.set_up(role, "settler")
        lies = {"fee:0": Failed("IsPaused", "paused"), "fee:0:1": Failed("IsPaused", "paused")}
        role._publisher._outbox = cast("Any", LyingOutbox(role._outbox, lies))

        async def is_paid() -> bool:
            world.clock.at_ms += 100
            return await world.balance(SETTLER.address) == fee_wei

        async def is_active() -> bool:
            return bool((await world.find_row(0))["is_active"])

        async with trio.open_nursery() as nursery:
            await nursery.start(role.run)
            await world.wait_state(0, "confirmed")
            await world.move_to_round(4)
            await world.wait_for(is_paid)
            await world.wait_for(is_active)
            nursery.cancel_scope.cancel()
        assert (await world.find_row(0))["attempt"] == 2
