"""The pages a validator serves: what, when, and what it takes in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from emcd.ledger import Ledger
from emcd.proto.json_form import from_json, to_json
from emcd.proto.merkle import build_proof, build_tree, record_leaf
from emcd.proto.messages import RoundRoot
from emcd.proto.records import RecordBatch, RecordKind, RecordProof, batch_root, format_call_id
from emcd.services import Health, HealthState
from emcd.testing import make_key, temporary_ledger
from emcd_hub.rounds import statement as hub_statement
from emcd_hub.rounds.statement import read_next_page, read_omission_page
from emcd_validator.offence_page import OffencePages
from emcd_validator.queries.items import MAX_OMISSIONS, MAX_OMISSIONS_PER_NODE
from emcd_validator.revealer import reveal_round
from emcd_validator.role import SPEC
from emcd_validator.server import MAX_OMISSION_BYTES, OMISSIONS_PER_PAGE, Pages
from emcd_validator.statement import (
    read_commitment,
    read_evidence,
    read_receipt,
    read_reveal,
    read_seals,
    read_votes,
)
from tests.support.validator_world import (
    FakeHub,
    Parts,
    fake_embed,
    make_call,
    make_parts,
    make_world,
    set_clock,
    take_statements,
)

NAMES = ("validator-1", "validator-2")
INDEX = 3


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"validator": SPEC.migrations}) as opened:
        yield opened


@pytest.fixture
def hub() -> FakeHub:
    return make_world(NAMES, embeds=[fake_embed(0.3)], round_s=20)


@pytest.fixture
def parts(ledger: Ledger, hub: FakeHub, tmp_path: Path) -> Parts:
    return make_parts(NAMES[0], ledger, hub, tmp_path)


async def ask(parts: Parts, path: str, body: bytes | None = None) -> tuple[int, Any]:
    """One request to the application, without a socket."""
    pages = OffencePages(parts.validator, parts.offences.desk)
    app = Pages(parts.validator, parts.attester, pages, lambda: Health(HealthState.READY, "fine")).build_app()
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body or b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    page, _, query = path.partition("?")
    scope: dict[str, Any] = {
        "type": "http", "method": "GET" if body is None else "POST", "path": page, "headers": [],
        "query_string": query.encode(), "root_path": "",
    }  # fmt: skip
    await app(scope, receive, send)
    return sent[0]["status"], msgspec.json.decode(b"".join(m.get("body", b"") for m in sent[1:]) or b"null")


async def live_through(parts: Parts, hub: FakeHub) -> None:
    """Commit and probe; the round is not over yet."""
    start_ms = hub.deployment.params.round_start_ms(INDEX)
    set_clock(hub, start_ms - 500)
    await parts.committer.commit(INDEX)
    set_clock(hub, start_ms + 17_000)
    await parts.committer.plan(await parts.views.fetch_view(INDEX))
    await parts.prober.run_round(INDEX)


async def end_round(parts: Parts, hub: FakeHub) -> None:
    set_clock(hub, parts.validator.reveal_at_ms(INDEX))
    await reveal_round(parts.validator, INDEX)


async def test_commitment_is_served_before_its_round(parts: Parts, hub: FakeHub) -> None:
    assert (await ask(parts, f"/commitments/{INDEX}"))[0] == 404
    set_clock(hub, hub.deployment.params.round_start_ms(INDEX) - 500)
    entry = await parts.committer.commit(INDEX)
    status, page = await ask(parts, f"/commitments/{INDEX}")
    assert (status, read_commitment(page)) == (200, entry)


async def test_nothing_of_the_plan_is_served_before_the_round_is_over(parts: Parts, hub: FakeHub) -> None:
    await live_through(parts, hub)
    (call_id,) = hub.calls
    paths = (
        f"/reveals/{INDEX}",
        f"/votes/{INDEX}",
        f"/rounds/{INDEX}",
        f"/evidence/{format_call_id(call_id)}",
    )
    assert [(await ask(parts, path))[0] for path in paths] == [404] * 4
    await end_round(parts, hub)
    assert [(await ask(parts, path))[0] for path in paths] == [200] * 4


async def test_reveal_and_evidence_of_a_strike_are_served_after_the_round(parts: Parts, hub: FakeHub) -> None:
    await live_through(parts, hub)
    await end_round(parts, hub)
    _, page = await ask(parts, f"/reveals/{INDEX}")
    reveal = read_reveal(page)
    (probe,) = reveal.probes
    status, evidence = await ask(parts, f"/evidence/{format_call_id(probe.call_id)}")
    assert status == 200
    assert (evidence["round"], evidence["node"], evidence["slot"]) == (INDEX, probe.node, probe.slot)
    assert read_evidence(evidence).leaf_index == probe.leaf_index
    _, votes = await ask(parts, f"/votes/{INDEX}")
    assert read_votes(votes) == ()
    _, everything = await ask(parts, f"/rounds/{INDEX}")
    assert everything["reveals"] == [page]
    assert len(everything["commitments"]) == 1


async def test_evidence_of_a_probe_that_passed_is_not_served(parts: Parts, hub: FakeHub) -> None:
    hub.nodes[0].embed = fake_embed()
    await live_through(parts, hub)
    await end_round(parts, hub)
    (call_id,) = hub.calls
    assert (await ask(parts, f"/evidence/{format_call_id(call_id)}"))[0] == 404


async def test_attestation_undecided_signed_and_refused(parts: Parts, hub: FakeHub) -> None:
    assert await ask(parts, "/attestations/0") == (
        404,
        {"code": "EMC-1801", "reason": "the round is not decided here"},
    )
    set_clock(hub, hub.deployment.params.grace_end_ms(0) + 1)
    hub.close(0)
    await parts.attester.decide(0)
    status, page = await ask(parts, "/attestations/0")
    assert status == 200
    assert from_json(RoundRoot, page["round_root"]) == hub.closed[0].round_root
    _, seals = await ask(parts, "/seals/0")
    assert [seal.bundle_hash for seal, _ in read_seals(seals)] == [hub.closed[0].bundle_hash]
    del hub.closed[0]
    hub.close(1)
    await parts.attester.decide(1)
    status, page = await ask(parts, "/attestations/1")
    assert (status, page["code"]) == (404, "EMC-1831")


@pytest.mark.parametrize("key", ["x", "-1", "1.5", "99999999999999", "٣", "0x1"])
async def test_pages_of_no_round_are_404(parts: Parts, key: str) -> None:
    for name in ("commitments", "reveals", "votes", "rounds", "seals", "attestations"):
        assert (await ask(parts, f"/{name}/{key}"))[0] == 404


async def test_evidence_of_no_call_id_is_400(parts: Parts) -> None:
    assert (await ask(parts, "/evidence/nonsense"))[0] == 400


async def test_healthz_says_how_it_is(parts: Parts) -> None:
    assert await ask(parts, "/healthz") == (200, {"state": "ready", "reason": "fine"})


def omission(world: FakeHub, at_ms: int, **changes: Any) -> bytes:
    call = make_call(world.deployment, world.nodes[0].key, b"{}", b"{}", at_ms, **changes)
    return msgspec.json.encode(to_json(call.receipt))


async def test_omission_signed_by_hub_and_node_is_kept_once(parts: Parts, hub: FakeHub) -> None:
    set_clock(hub, hub.deployment.params.round_end_ms(0))
    body = omission(hub, hub.now_ms())
    assert await ask(parts, "/omissions", body) == (202, {"state": "new"})
    assert await ask(parts, "/omissions", body) == (202, {"state": "known"})


async def test_omission_not_signed_by_the_hub_or_too_old_is_refused(parts: Parts, hub: FakeHub) -> None:
    set_clock(hub, hub.deployment.params.round_end_ms(40))
    for body, code in (
        (omission(hub, hub.now_ms(), hub=make_key("another hub")), "EMC-1960"),
        (omission(hub, hub.now_ms(), receipt_key=make_key("somebody")), "EMC-1496"),
        (omission(hub, hub.deployment.params.round_start_ms(3)), "EMC-1830"),
        (b"{}", "EMC-1499"),
        (b"\xff", "EMC-1499"),
    ):
        status, page = await ask(parts, "/omissions", body)
        assert (status, page["code"]) == (400, code)
    assert (await ask(parts, "/omissions", b" " * (MAX_OMISSION_BYTES + 1)))[0] == 413


def shared_omission(hub: FakeHub, others: int = 1) -> tuple[dict[str, Any], list[str]]:
    """A call whose receipt stands in a batch with others, and the records of that batch."""
    call = make_call(hub.deployment, hub.nodes[0].key, b"{}", b"{}", hub.now_ms())
    records = call.records
    assert records.receipt is not None
    hashes = (bytes(records.receipt.struct_hash()), *(bytes([n]) * 32 for n in range(others)))
    tree = build_tree([record_leaf(item) for item in hashes])
    batch = RecordBatch(
        records.forward.node, int(RecordKind.RECEIPT), batch_root(hashes), len(hashes), hub.now_ms()
    )
    signature = hub.nodes[0].key.sign(hub.deployment.staking_domain, batch)
    proof = RecordProof(batch, signature, 0, tuple(build_proof(tree, 0)))
    shared = msgspec.structs.replace(call.receipt, receipt_proof=proof)
    return to_json(shared), ["0x" + item.hex() for item in hashes]


async def test_omission_without_all_of_its_batch_is_refused(parts: Parts, hub: FakeHub) -> None:
    """Nobody could put it into a bundle: a bundle has whole batches, and the hub may lack this one."""
    set_clock(hub, hub.deployment.params.round_end_ms(0))
    receipt, hashes = shared_omission(hub, 2)
    wrong: list[Any] = [
        receipt,
        {"receipt": receipt, "record_hashes": hashes[:1]},
        {"receipt": receipt, "record_hashes": hashes[::-1]},
        {"receipt": receipt, "record_hashes": [*hashes[:2], "0x" + "ff" * 32]},
        {"receipt": {**receipt, "receipt": None, "receipt_proof": None}, "record_hashes": []},
    ]
    for body in wrong:
        status, page = await ask(parts, "/omissions", msgspec.json.encode(body))
        assert (status, page["code"]) == (400, "EMC-1830")
    malformed: list[Any] = [
        {"receipt": receipt, "record_hashes": hashes, "more": 1},
        {"receipt": receipt, "record_hashes": hashes * 200},
        {"receipt": receipt, "record_hashes": "0x"},
    ]
    for body in malformed:
        assert (await ask(parts, "/omissions", msgspec.json.encode(body)))[0] == 400


async def test_omission_with_all_of_its_batch_is_kept_and_passed_on_to_the_hub(
    parts: Parts, hub: FakeHub
) -> None:
    set_clock(hub, hub.deployment.params.round_end_ms(0))
    receipt, hashes = shared_omission(hub, 255)
    body = msgspec.json.encode({"receipt": receipt, "record_hashes": hashes})
    assert (await ask(parts, "/omissions", body))[0] == 202
    [filed] = read_omission_page((await ask(parts, f"/omissions/{parts.validator.current_round()}"))[1])
    assert batch_root(filed.record_hashes) == filed.batch.root
    assert filed.batch.count == 256


async def test_filed_batches_are_served_to_the_hub_as_long_as_they_can_be_carried(
    parts: Parts, hub: FakeHub
) -> None:
    set_clock(hub, hub.deployment.params.round_end_ms(0))
    body = omission(hub, hub.now_ms())
    index = hub.deployment.params.round_at(hub.now_ms())
    await ask(parts, "/omissions", body)
    for wanted, count in ((index - 1, 0), (index, 1), (index + 12, 1), (index + 13, 0)):
        status, page = await ask(parts, f"/omissions/{wanted}")
        assert (status, len(read_omission_page(page))) == (200, count)
    [filed] = read_omission_page((await ask(parts, f"/omissions/{index}"))[1])
    receipt = read_receipt(body)
    assert receipt.receipt_proof is not None
    assert (filed.call_id, filed.batch) == (receipt.forward.call_id, receipt.receipt_proof.batch)


async def test_filed_calls_are_served_in_pages(
    parts: Parts, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emcd_validator.server.OMISSIONS_PER_PAGE", 2)
    set_clock(hub, hub.deployment.params.round_end_ms(0))
    bodies = [omission(hub, hub.now_ms()) for _ in range(5)]
    for body in bodies:
        await ask(parts, "/omissions", body)
    path = f"/omissions/{hub.deployment.params.round_at(hub.now_ms())}"
    seen, query, counts = [], "", []
    while True:
        _, page = await ask(parts, path + query)
        filed = read_omission_page(page)
        seen += [item.call_id for item in filed]
        counts.append(len(filed))
        following = read_next_page(page)
        if following is None:
            break
        query = f"?from={format_call_id(following)}"
    assert counts == [2, 2, 1]
    assert seen == sorted(read_receipt(body).forward.call_id for body in bodies)
    assert (await ask(parts, path + "?from=x"))[0] == 400


async def test_full_page_of_filed_batches_is_within_what_the_hub_reads(parts: Parts, hub: FakeHub) -> None:
    assert OMISSIONS_PER_PAGE == hub_statement.OMISSIONS_PER_PAGE
    assert MAX_OMISSIONS <= hub_statement.MAX_OMISSIONS
    set_clock(hub, hub.deployment.params.round_end_ms(0))
    receipt, hashes = shared_omission(hub, 255)
    await ask(parts, "/omissions", msgspec.json.encode({"receipt": receipt, "record_hashes": hashes}))
    _, page = await ask(parts, f"/omissions/{parts.validator.current_round()}")
    full = {"omissions": page["omissions"] * OMISSIONS_PER_PAGE, "next": page["omissions"][0]["call_id"]}
    assert len(msgspec.json.encode(full)) < hub_statement.OMISSION_PAGE_BYTES


async def test_omissions_of_one_node_are_bounded(
    parts: Parts, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_OMISSIONS_PER_NODE <= 1024
    monkeypatch.setattr("emcd_validator.queries.items.MAX_OMISSIONS_PER_NODE", 2)
    set_clock(hub, hub.deployment.params.round_end_ms(0))
    states = [(await ask(parts, "/omissions", omission(hub, hub.now_ms())))[0] for _ in range(3)]
    assert states == [202, 202, 409]


async def test_round_page_relays_what_peers_said(
    parts: Parts, hub: FakeHub, ledger: Ledger, tmp_path: Path
) -> None:
    await live_through(parts, hub)
    await end_round(parts, hub)
    await take_statements(hub, parts.validator, INDEX)
    _, page = await ask(parts, f"/rounds/{INDEX}")
    assert page["reveals"][0] == hub.pages["reveals", INDEX, parts.validator.address]
