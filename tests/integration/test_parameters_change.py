"""A quorum changes prices and probes, and a validator its key, in a network that goes on working."""

from __future__ import annotations

from pathlib import Path

import trio

from emcd.accounting.audit import audit_bundle
from emcd.accounting.expectation import Expectation
from emcd.chain.parameters import fetch_parameter_schedule
from emcd.cli.audit_parameters import expect_parameters
from emcd.inference.minilm import ModelFiles
from emcd.proto.bundle_codec import decode_bundle
from emcd.proto.json_form import from_json
from emcd.proto.messages import RoundRoot
from emcd.proto.records import CallStatus
from emcd.proto.signing import recover
from emcd.testing import make_key
from emcd.types import Address
from tests.support.inference_model import fp32_files
from tests.support.living_network import EPOCH_ROUNDS, VALIDATORS, LivingNetwork, living_network
from tests.support.parameter_quorum import DEAR, changed, first_set, publish_change

__all__ = ["fp32_files"]

CHANGE_EPOCH = 2
CHANGE_ROUND = CHANGE_EPOCH * EPOCH_ROUNDS
NEXT_KEY = make_key("validator-1, second key")


async def call_through(living: LivingNetwork, first: int, last: int) -> None:
    """A user's call twice a round, early and late."""
    for index in range(first, last + 1):
        for share in (0.15, 0.85):
            start_ms = living.params.round_start_ms(index)
            await living.wait_until(start_ms + int(share * living.params.round_s * 1000))
            with trio.fail_after(living.params.round_s):
                while (await living.call(f"call {index} {share}")).status != 200:
                    await trio.sleep(0.1)


def signer_of(living: LivingNetwork, page: dict[str, object]) -> tuple[RoundRoot, Address]:
    root = from_json(RoundRoot, page["round_root"])
    signature = bytes.fromhex(str(page["signature"])[2:])
    return root, recover(living.deployment.distributor_domain, root, signature)


async def test_network_goes_on_through_a_change_of_prices_and_of_a_validators_key(
    tmp_path: Path, fp32_files: ModelFiles
) -> None:
    async with living_network(tmp_path) as living:
        await living.start_hub()
        await living.start_node()
        await living.start_validator("validator-1", NEXT_KEY)
        for name in VALIDATORS[1:]:
            await living.start_validator(name)
        await living.wait_until(living.params.round_start_ms(0) + 500)
        after = changed(first_set(living.network), prices=DEAR, probes_per_node=3)
        await living.rotate_key("validator-1", NEXT_KEY)
        await publish_change(living.network, after, CHANGE_EPOCH, list(living.keys.values())[:3])
        await call_through(living, CHANGE_ROUND - 2, CHANGE_ROUND + 1)
        first, last = CHANGE_ROUND - 2, CHANGE_ROUND + 1
        slots: dict[int, set[int]] = {}
        for index in range(first, last + 1):
            roots = set()
            for name in VALIDATORS:
                status, page = await living.wait_decision(name, index)
                assert status == 200, (name, index, page)
                root, signer = signer_of(living, page)
                is_rotated = name == "validator-1" and index >= CHANGE_ROUND
                assert signer == (NEXT_KEY if is_rotated else living.keys[name]).address
                roots.add(root.bundle_hash)
            assert len(roots) == 1
            slots[index] = await check_bundle(living, index)
        assert 2 in slots[CHANGE_ROUND] | slots[CHANGE_ROUND + 1]


async def check_bundle(living: LivingNetwork, index: int) -> set[int]:
    """Everything in the bundle is by the version of its round. Returns: the slots that were probed."""
    data = await living.fetch_bundle(index)
    bundle = decode_bundle(data)
    header = bundle.header
    is_new = index >= CHANGE_ROUND
    assert header.params.version == (2 if is_new else 1)
    assert header.params.probes_per_node == (3 if is_new else 2)
    assert [table.version for table in header.prices] == ([1, 2] if is_new else [1])
    assert header.prices_from == ((0, CHANGE_ROUND) if is_new else (0,))
    own = [
        call
        for call in bundle.calls
        if call.delivery.round == index and call.delivery.status == CallStatus.OK
    ]
    assert len(own) >= 2
    for call in own:
        started = living.params.round_at(call.forward.started_at_ms)
        assert call.forward.price_version == (2 if started >= CHANGE_ROUND else 1)
        tokens = call.receipt.input_tokens if call.receipt is not None else 0
        wanted = max(20_000, tokens * 20_000) if started >= CHANGE_ROUND else max(10_000, tokens * 10_000)
        assert call.delivery.credits_micro == wanted
    slots = {probe.slot for entry in bundle.reveals for probe in entry.probes}
    assert slots <= set(range(3 if is_new else 2))
    speaker = (NEXT_KEY if is_new else living.keys["validator-1"]).address
    seats = {entry.node for entry in bundle.participants}
    assert speaker in seats
    assert speaker in {entry.node for entry in bundle.validators}
    assert speaker in {entry.reveal.validator for entry in bundle.reveals}
    assert {entry.node: entry.reason for entry in bundle.results}[speaker] == ""
    schedule = await fetch_parameter_schedule(living.chain)
    expected = Expectation(**expect_parameters(header, living.deployment, schedule))
    outcome = await trio.to_thread.run_sync(audit_bundle, data, expected)
    assert outcome.ok, outcome.difference
    return slots
