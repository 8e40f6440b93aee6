"""The evidence of own probes: everything from which a third party judges one anew.

Owns putting it together from the ledger. It carries what was the validator's own from the start: its
plan, its prompt, the answer to it; nothing of users. Who may have it, and when, is the server's to say.
"""

from __future__ import annotations

from typing import Any

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.inference.manifest import canonical_json
from emcd.proto.address import hex_hash
from emcd.proto.json_form import to_json
from emcd.proto.messages import Verdict
from emcd.types import ZERO_ADDRESS, Address
from emcd_validator.entry import read_commitment_item, read_reveal_item
from emcd_validator.probe_request import path_of
from emcd_validator.queries.items import Item, Kind
from emcd_validator.queries.rounds import ProbeRow, RoundRow, find_round, list_probes
from emcd_validator.queries.verdicts import VerdictRow, find_verdict
from emcd_validator.signatory import find_own
from emcd_validator.statement import (
    Evidence,
    read_receipt,
    write_commitment,
    write_evidence,
    write_signature,
)
from emcd_validator.validator import Validator


def make_evidence(probe: ProbeRow) -> Evidence | None:
    """What is shown of a probe, whatever its verdict; None unless it was judged and a call backs it."""
    if probe.result is None or probe.leaf_index is None or not probe.receipt:
        return None
    try:
        receipt = read_receipt(probe.receipt)
    except RemoteProtocolError:
        return None  # the hub gave none that can be read
    return Evidence(
        request_path=path_of(probe.request_body),
        request_body=probe.request_body,
        response_status=probe.status,
        response_content_type=probe.content_type,
        response_body=probe.response_body,
        receipt=receipt,
        model=probe.model,
        leaf_index=probe.leaf_index,
        leaf_count=probe.leaf_count,
        leaf=probe.leaf,
        leaf_path=probe.leaf_path,
    )


async def fetch_evidence_page(validator: Validator, probe: ProbeRow) -> dict[str, Any] | None:
    """The whole page of a probe; None as `make_evidence`."""
    evidence = make_evidence(probe)
    if evidence is None or probe.result is None:
        return None
    index = probe.round
    row = await validator.read(lambda con: find_round(con, validator.address, index))
    probes = await validator.read(lambda con: list_probes(con, validator.address, index))
    verdict = await validator.read(lambda con: find_verdict(con, validator.address, probe.call_id))
    commitment = await find_own(validator, Kind.COMMITMENT, index)
    reveal = await find_own(validator, Kind.REVEAL, index)
    model = validator.models.get(probe.model)
    slots = [[item.node, item.slot] for item in probes]
    author = _find_author(commitment, reveal)
    return {
        "round": index,
        "node": probe.node,
        "slot": probe.slot,
        "validator": author,
        **write_evidence(evidence),
        "network": {
            "chain_id": validator.deployment.chain_id,
            "staking": validator.deployment.staking,
            "hub": validator.hub,
        },
        "plan": _write_plan(row, commitment, reveal, slots),
        "manifest": "" if model is None else canonical_json(model.manifest).decode(),
        "own": _write_own(probe, verdict),
    }


def _find_author(commitment: Item | None, reveal: Item | None) -> Address:
    found = commitment or reveal
    return ZERO_ADDRESS if found is None else found.author


def _write_plan(
    row: RoundRow | None, commitment: Item | None, reveal: Item | None, slots: list[list[Any]]
) -> dict[str, Any]:
    plan: dict[str, Any] = {"slots": slots}
    if row is not None and row.beacon_hash is not None:
        plan["beacon_hash"] = hex_hash(row.beacon_hash)
    if commitment is not None:
        plan |= write_commitment(read_commitment_item(commitment))
    if reveal is not None:
        entry = read_reveal_item(reveal)
        plan |= {"reveal": to_json(entry.reveal), "reveal_signature": write_signature(entry.signature)}
    return plan


def _write_own(probe: ProbeRow, verdict: VerdictRow | None) -> dict[str, Any]:
    """What this validator says itself; the statistic as text, for it may have 64 bits."""
    assert probe.result is not None
    numbers = msgspec.json.decode(verdict.numbers) if verdict is not None and verdict.numbers else None
    return {
        "verdict": Verdict(probe.result.verdict).name,
        "statistic_e12": str(probe.result.statistic_e12),
        "reason": probe.reason,
        "blame": "" if verdict is None else verdict.blame,
        "numbers": numbers,
    }
