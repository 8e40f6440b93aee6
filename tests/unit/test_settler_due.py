"""The settler's decisions: which round is due, what is a quorum, which request is in order."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pytest

from emcd.config import decode
from emcd.errors import RemoteProtocolError
from emcd.proto.address import hex_hash
from emcd.proto.eip712 import Domain
from emcd.proto.json_form import to_json
from emcd.proto.messages import Extraction, RoundRoot
from emcd.testing import make_key
from emcd_settler.attestation import (
    Attestation,
    describe_split,
    find_quorum,
    list_equivocators,
    read_attestation,
)
from emcd_settler.config import SettlerConfig
from emcd_settler.extraction_rule import is_expired, read_request
from emcd_settler.publisher import Due, list_candidates, list_due
from tests.support.round_world import CHAIN_ID, DISTRIBUTOR, STAKING, edited

DOMAIN = Domain(CHAIN_ID, DISTRIBUTOR)
ROOT = RoundRoot(5, b"\x01" * 32, b"\x02" * 32, 10**24)
OTHER = edited(ROOT, root=b"\x03" * 32)


def write_attestation(root: RoundRoot, signature: bytes) -> bytes:
    return msgspec.json.encode({"round_root": to_json(root), "signature": hex_hash(signature)})


KEYS = [make_key(f"v{n}") for n in range(4)]
POWERS = {key.address: 100 for key in KEYS}


@pytest.mark.parametrize(
    ("closed", "last", "tip", "every", "wanted", "due"),
    [
        (-2, -1, -1, 1, [], []),
        (-1, -1, -1, 1, [], []),
        (0, -1, -1, 1, [], [Due(0, False)]),
        (0, 0, 0, 1, [], []),
        (10, -1, -1, 12, [], []),
        (11, -1, -1, 12, [], [Due(11, False)]),
        (20, -1, -1, 12, [], [Due(11, False)]),
        (40, 11, 11, 12, [], [Due(35, False)]),
        (40, 35, 35, 12, [], []),
        (40, 35, 35, 12, [35, 20], []),
        (40, 35, 35, 12, [38, 37], [Due(37, True), Due(38, True)]),
        (40, 35, 35, 12, [39, 38, 37, 38], [Due(37, True), Due(39, True)]),
        (40, 35, 35, 12, [41], []),
        (40, 23, 23, 12, [25], [Due(25, True), Due(35, False)]),
        (40, 23, 23, 12, [35], [Due(35, False)]),
        (40, 23, 23, 12, [38], [Due(35, False)]),
        (40, 23, 23, 12, [20], [Due(35, False)]),
        (40, 35, 23, 12, [], [Due(36, False)]),
        (40, 35, 23, 12, [30], [Due(36, False)]),
        (40, 40, 23, 12, [30], []),
    ],
)
def test_due_rounds(closed: int, last: int, tip: int, every: int, wanted: list[int], due: list[Due]) -> None:
    """last 35 and tip 23: what was published up to 35 was vetoed, and no number comes back."""
    assert list_due(closed, last, tip, every, wanted) == due


@pytest.mark.parametrize("closed", range(23, 48))
def test_due_request_for_an_early_round_never_hides_the_boundary(closed: int) -> None:
    due = list_due(closed, 11, 11, 12, [12])
    looked_at = list_candidates(closed, 0, due)
    boundary = (closed + 1) // 12 * 12 - 1

    assert Due(boundary, False) in looked_at
    assert [item.round for item in looked_at if item.is_forced] == [12, 13, 14, 15]


def test_due_candidates_from_the_boundary_on_need_not_be_worth_anything() -> None:
    assert list_candidates(40, 0, list_due(40, 23, 23, 12, [34])) == [
        Due(34, True), *(Due(index, False) for index in (35, 36, 37, 38))
    ]  # fmt: skip
    assert list_candidates(40, 36, list_due(40, 23, 23, 12, [])) == [
        Due(index, False) for index in (36, 37, 38, 39)
    ]
    assert list_candidates(40, 0, [Due(36, True), Due(39, True)]) == [
        Due(index, True) for index in (36, 37, 39, 40)
    ]


def attest(*outcomes: RoundRoot | None) -> list[Attestation]:
    return [
        Attestation(key.address, root, key.sign(DOMAIN, root))
        for key, root in zip(KEYS, outcomes, strict=False)
        if root is not None
    ]


@pytest.mark.parametrize(
    ("outcomes", "members"),
    [
        ([ROOT, ROOT, ROOT, ROOT], 4),
        ([ROOT, ROOT, ROOT], 3),
        ([ROOT, ROOT, OTHER, ROOT], 3),
        ([ROOT, ROOT], 0),
        ([ROOT, ROOT, OTHER, OTHER], 0),
        ([], 0),
    ],
)
def test_quorum_is_more_than_two_thirds_for_one_outcome(outcomes: list[RoundRoot], members: int) -> None:
    quorum = find_quorum(POWERS, attest(*outcomes))

    assert (0 if quorum is None else len(quorum.signatures)) == members
    assert quorum is None or quorum.root == ROOT


def test_quorum_exactly_two_thirds_is_not_enough() -> None:
    assert find_quorum({key.address: 100 for key in KEYS[:3]}, attest(ROOT, ROOT)) is None


def test_quorum_counts_power_not_heads() -> None:
    powers = {**POWERS, KEYS[0].address: 10_000}

    assert find_quorum(powers, attest(ROOT)) is not None
    assert find_quorum(powers, attest(None, ROOT, ROOT, ROOT)) is None


def test_quorum_outsider_does_not_count() -> None:
    powers = {key.address: 100 for key in (*KEYS[:2], make_key("x"), make_key("y"))}
    assert find_quorum(powers, attest(ROOT, ROOT, ROOT, ROOT)) is None


def test_quorum_who_signed_two_outcomes_counts_for_neither() -> None:
    known = [*attest(ROOT, ROOT, ROOT), *attest(None, None, OTHER)]

    assert list_equivocators(known) == {KEYS[2].address}
    assert find_quorum(POWERS, known) is None
    assert find_quorum(POWERS, [*known, *attest(None, None, None, ROOT)]) is not None


def test_quorum_of_nobody_is_none() -> None:
    assert find_quorum({}, []) is None
    assert describe_split(POWERS, []) == "nobody has attested it"
    assert describe_split(POWERS, attest(ROOT, ROOT)) == "0x01010101: 50 %"


def test_attestation_is_read_and_checked() -> None:
    key = KEYS[0]
    found = read_attestation(DOMAIN, write_attestation(ROOT, key.sign(DOMAIN, ROOT)), 5, key.address)
    assert found.root == ROOT

    for body, index, validator in (
        (write_attestation(ROOT, key.sign(DOMAIN, ROOT)), 6, key.address),
        (write_attestation(ROOT, key.sign(DOMAIN, ROOT)), 5, KEYS[1].address),
        (write_attestation(ROOT, key.sign(Domain(CHAIN_ID, STAKING), ROOT)), 5, key.address),
        (write_attestation(ROOT, b""), 5, key.address),
        (b"", 5, key.address),
        (b"null", 5, key.address),
    ):
        with pytest.raises(RemoteProtocolError) as caught:
            read_attestation(DOMAIN, body, index, validator)
        assert caught.value.code == "EMC-1970"


def test_request_is_in_order_up_to_its_deadline() -> None:
    key = make_key("wallet")
    extraction = Extraction(key.address, STAKING, 3, True, 2**200, 1000)
    table = {
        "extraction": to_json(extraction),
        "signature": hex_hash(key.sign(DOMAIN, extraction)),
        "state": "x",
    }

    assert read_request(DOMAIN, table, 1000, 1).extraction == extraction
    assert not is_expired(extraction, 1000)
    far_s = 1000 - 400 * 86_400
    assert read_request(DOMAIN, table, far_s, 1).extraction == extraction
    for now_s, current, domain in (
        (1001, 1, DOMAIN),
        (1000, 0, DOMAIN),
        (far_s - 1, 1, DOMAIN),
        (0, 1, Domain(2, DISTRIBUTOR)),
        (0, 1, Domain(CHAIN_ID, STAKING)),
    ):
        with pytest.raises(RemoteProtocolError) as caught:
            read_request(domain, table, now_s, current)
        assert caught.value.code == "EMC-1974"


def test_config_defaults_and_faults() -> None:
    table: dict[str, Any] = {"key": "settler.json", "hub_url": "http://127.0.0.1:8420"}

    config, faults = decode(SettlerConfig, table)
    assert not faults
    assert config is not None
    assert config.publish_every_rounds is None

    for wrong in (
        {"hub_url": "ftp://x"},
        {"publish_every_rounds": 0},
        {"least_claim_wei": "-1"},
        {"least_claim_wei": "1.5"},
        {"poll_s": 0.0},
        {"hub": "http://x"},
    ):
        _, faults = decode(SettlerConfig, {**table, **wrong})
        assert faults, wrong


def test_readme_table_is_a_configuration_with_its_comments_too() -> None:
    text = (Path(__file__).parents[2] / "plugins" / "emcd_settler" / "README.md").read_text("utf-8")
    block = text.split("```toml\n")[1].split("```")[0]
    for source in (block, block.replace("\n# ", "\n")):
        (table,) = tomllib.loads(source)["role"]
        rest = {key: value for key, value in table.items() if key not in ("kind", "name")}
        config, faults = decode(SettlerConfig, rest)
        assert not faults
        assert config is not None
    assert {field.name for field in fields(SettlerConfig)} == rest.keys()
