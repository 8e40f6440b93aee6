"""Parameters as documents: what is refused, what may follow what, which version is in force."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from eth_abi import encode
from hypothesis import given
from hypothesis import strategies as st

from emcd.errors import FatalError, RecoverableError, RemoteProtocolError
from emcd.proto.bundle_shape import require_shape
from emcd.proto.eip712 import Domain, digest
from emcd.proto.hashing import keccak
from emcd.proto.network import Deployment, decode_deployment, encode_deployment
from emcd.proto.parameter_schedule import (
    ParameterSchedule,
    ParameterVersion,
    PriceInForce,
    PublishedVersion,
    Unreadable,
    build_schedule,
    first_schedule,
    single_schedule,
)
from emcd.proto.parameter_words import list_differences
from emcd.proto.parameters import (
    MAX_DOCUMENT_BYTES,
    ParametersChange,
    ParameterSet,
    RoleRule,
    decode_document,
    document_hash,
    encode_document,
    list_change_faults,
    make_change,
    next_set,
    require_change,
    rules_hash,
    rules_of,
)
from emcd.proto.params import (
    ModelPrice,
    ModelStanding,
    NetworkParams,
    PriceTable,
    devnet_params,
    mainnet_params,
)
from emcd.testing import make_key

GENESIS = 1_800_000_000
BASE = ParameterSet(mainnet_params(GENESIS), PriceTable())
MANIFEST = "0x" + "ab" * 32
DEAR = PriceTable(1, ModelPrice(20_000_000_000, 10_000_000_000, 10_000), ((MANIFEST, ModelPrice()),))


def params(**changes: Any) -> NetworkParams:
    return msgspec.structs.replace(BASE.params, **changes)


def prices(**changes: Any) -> PriceTable:
    return msgspec.structs.replace(BASE.prices, **changes)


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises((RemoteProtocolError, RecoverableError)) as caught:
        act()
    return caught.value.code


# ---------------------------------------------------------------------- the document


def test_document_round_trips_and_is_canonical_json() -> None:
    text = encode_document(BASE.params, DEAR)

    assert decode_document(text) == ParameterSet(BASE.params, DEAR)
    assert decode_document(text.encode()) == ParameterSet(BASE.params, DEAR)
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert text.isascii()
    assert set(json.loads(text)["params"]) == set(NetworkParams.__struct_fields__)


def test_document_has_params_and_prices_as_the_deployment_file_has_them() -> None:
    addresses = {name: make_key(name).address for name in ("token", "staking", "distributor", "vault")}
    known = {name: make_key(name).address for name in Deployment.__struct_fields__ if name == "parameters"}
    deployment = Deployment(
        chain_id=1, deployed_block=1, params=BASE.params, prices=DEAR, **addresses, **known
    )
    table = json.loads(encode_deployment(deployment))

    assert json.loads(encode_document(BASE.params, DEAR)) == {
        "params": table["params"],
        "prices": table["prices"],
    }
    assert decode_deployment(json.dumps(table)) == deployment


@pytest.mark.parametrize(
    ("code", "edit"),
    [
        ("EMC-1470", lambda t: t.update(extra=1)),
        ("EMC-1470", lambda t: t.pop("prices")),
        ("EMC-1470", lambda t: t["params"].update(unheard_of=1)),
        ("EMC-1470", lambda t: t["params"].pop("carry_rounds")),
        ("EMC-1470", lambda t: t["params"].update(carry_rounds="12")),
        ("EMC-1470", lambda t: t["params"].update(carry_rounds=1.5)),
        ("EMC-1470", lambda t: t["params"].update(carry_rounds=True)),
        ("EMC-1470", lambda t: t["params"].update(compute_minimum_wei=5)),
        ("EMC-1470", lambda t: t["params"].update(compute_minimum_wei="-5")),
        ("EMC-1470", lambda t: t["params"].update(compute_minimum_wei=str(2**256))),
        ("EMC-1471", lambda t: t["params"].update(compute_minimum_wei="05")),
        ("EMC-1470", lambda t: t["params"].update(compute_locks=[[0]])),
        ("EMC-1470", lambda t: t["params"].update(compute_locks=7)),
        ("EMC-1471", lambda t: t.update(prices=[1])),
        ("EMC-1470", lambda t: t.update(prices={"version": 1})),
        ("EMC-1470", lambda t: t.update(params=[])),
        ("EMC-1472", lambda t: t["params"].update(carry_rounds=-1)),
        ("EMC-1472", lambda t: t["params"].update(probes_per_node=2**64)),
    ],
)
def test_document_of_other_fields_or_types_is_refused(code: str, edit: Callable[[Any], Any]) -> None:
    table = json.loads(encode_document(BASE.params, BASE.prices))
    edit(table)

    text = json.dumps(table, sort_keys=True, separators=(",", ":"))
    assert code_of(lambda: decode_document(text)) == code


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "nonsense", "[" * 10_000, '{"params":1,"prices":1}', "\ud800"]
)
def test_document_that_is_none_is_refused(text: str) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    assert code_of(lambda: decode_document(raw)) == "EMC-1470"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text + " ",
        lambda text: text.replace(",", ", ", 1),
        lambda text: json.dumps(dict(reversed(json.loads(text).items())), separators=(",", ":")),
        lambda text: text.replace('"round_s":7200', '"round_s":1,"round_s":7200'),
        lambda text: text.replace('"round_s":', '"round_\\u0073":'),
        lambda text: text + " " * MAX_DOCUMENT_BYTES,
    ],
)
def test_document_in_another_form_is_refused(damage: Callable[[str], str]) -> None:
    assert code_of(lambda: decode_document(damage(encode_document(*_pair())))) == "EMC-1471"


def _pair() -> tuple[NetworkParams, PriceTable]:
    return BASE.params, BASE.prices


@given(st.binary(max_size=300))
def test_document_decoder_survives_any_bytes(raw: bytes) -> None:
    assert code_of(lambda: decode_document(raw)) == "EMC-1470"


@given(st.data())
def test_document_with_any_one_byte_changed_is_refused_or_says_something_else(data: st.DataObject) -> None:
    text = bytearray(encode_document(BASE.params, DEAR).encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_document(bytes(text))
    except RemoteProtocolError as exc:
        assert exc.code in ("EMC-1470", "EMC-1471", "EMC-1472")
    else:
        assert found != ParameterSet(BASE.params, DEAR)
        assert encode_document(found.params, found.prices).encode() == bytes(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"validator_set_size": 12},
        {"validator_set_size": 34},
        {"validator_set_size": 0},
        {"minimum_judges": 0},
        {"minimum_judges": 14},
        {"probes_per_node": 0},
        {"probes_per_node": 17},
        {"compute_minimum_wei": bytes(32)},
        {"router_minimum_wei": bytes(32)},
        {"validator_minimum_wei": bytes(32)},
        {"compute_minimum_wei": (10_000_000 * 10**18 + 1).to_bytes(32, "big")},
        {"hub_minimum_wei": b"\xff" * 32},
        {"void_after_rounds": 19},
        {"void_after_rounds": 0},
        {"carry_rounds": 21},
        {"suspension_rounds": 10_001},
        {"online_window_ms": 119_999},
        {"status_interval_ms": 0},
        {"close_within_ms": 7_200_001},
        {"beacon_blocks": 0},
        {"beacon_blocks": 65},
        {"round_s": 0},
        {"standard_task_micro": 10**15 + 1},
        {"validator_lock_days": 3_651},
        {"compute_locks": ()},
        {"compute_locks": ((7, 14_000),)},
        {"compute_locks": ((0, 10_000), (0, 14_000))},
        {"compute_locks": ((0, 10_000), (30, 14_000), (7, 27_000))},
        {"compute_locks": ((0, 10_000), (7, 9_999))},
        {"compute_locks": ((0, 0),)},
        {"compute_locks": ((0, 10_000), (7, 1_000_001))},
        {"compute_locks": ((0, 10_000), (3_651, 10_000))},
        {"compute_locks": tuple((n, 10_000) for n in range(33))},
        {"recheck_bps": 10_001},
        {"recheck_bps": -1},
        {"models": ((MANIFEST, 0),)},
        {"models": ((MANIFEST, 3),)},
        {"models": (("0xAB" + "ab" * 31, 1),)},
        {"models": (("llama", 1),)},
        {"models": ((MANIFEST, 1), (MANIFEST, 2))},
        {"models": (("0x" + "ff" * 32, 1), (MANIFEST, 1))},
        {"models": tuple((f"0x{n:064x}", 1) for n in range(129))},
    ],
)
def test_parameters_that_no_network_can_run_on_are_refused(wrong: dict[str, Any]) -> None:
    text = encode_document(params(**wrong), BASE.prices)
    assert code_of(lambda: decode_document(text)) == "EMC-1472"


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 0},
        {"version": 2**32},
        {"default": ModelPrice(-1, 0, 0)},
        {"default": ModelPrice(0, 10**15 + 1, 0)},
        {"default": ModelPrice(0, 0, -1)},
        {"models": (("0xAB" + "ab" * 31, ModelPrice()),)},
        {"models": (("llama", ModelPrice()),)},
        {"models": ((MANIFEST, ModelPrice()), (MANIFEST, ModelPrice()))},
        {"models": (("0x" + "ff" * 32, ModelPrice()), (MANIFEST, ModelPrice()))},
        {"models": tuple((f"0x{n:064x}", ModelPrice()) for n in range(129))},
    ],
)
def test_prices_that_no_network_can_run_on_are_refused(wrong: dict[str, Any]) -> None:
    text = encode_document(BASE.params, prices(**wrong))
    assert code_of(lambda: decode_document(text)) == "EMC-1472"


@pytest.mark.parametrize("table", [prices(default=ModelPrice(0, 0, 0)), DEAR])
@pytest.mark.parametrize(
    "numbers", [mainnet_params(GENESIS), devnet_params(GENESIS), devnet_params(GENESIS, 2)]
)
def test_the_profiles_and_free_calls_are_sound(numbers: NetworkParams, table: PriceTable) -> None:
    assert decode_document(encode_document(numbers, table)) == ParameterSet(numbers, table)


def test_catalogue_gives_each_model_its_standing() -> None:
    other = "0x" + "cd" * 32
    numbers = params(models=((MANIFEST, 1), (other, 2)))

    assert decode_document(encode_document(numbers, BASE.prices)).params == numbers
    assert numbers.standing_of(bytes.fromhex("ab" * 32)) is ModelStanding.ENFORCED
    assert numbers.standing_of(bytes.fromhex("cd" * 32)) is ModelStanding.DELISTED
    assert numbers.standing_of(bytes(32)) is ModelStanding.SHADOW


@pytest.mark.parametrize(
    "models",
    [
        ((MANIFEST, 0),),
        ((MANIFEST, 3),),
        (("0x", 1),),
        ((MANIFEST, 1), (MANIFEST, 2)),
        (("0x" + "ff" * 32, 1), (MANIFEST, 1)),
    ],
)
def test_catalogue_that_is_none_stands_in_no_bundle(models: tuple[tuple[str, int], ...]) -> None:
    require_shape(params(models=((MANIFEST, 1),)))
    with pytest.raises(RemoteProtocolError, match="EMC-1902"):
        require_shape(params(models=models))


def test_longest_catalogue_fits_a_document() -> None:
    numbers = params(models=tuple((f"0x{n:064x}", 2) for n in range(128)))
    text = encode_document(numbers, BASE.prices)

    assert len(text) <= MAX_DOCUMENT_BYTES
    assert decode_document(text).params == numbers


def test_longest_price_list_fits_a_document() -> None:
    rows = tuple((f"0x{n:064x}", ModelPrice(10**9, 10**9, 10**6)) for n in range(128))
    text = encode_document(BASE.params, prices(models=rows))

    assert len(text) <= MAX_DOCUMENT_BYTES
    assert decode_document(text).prices.models == rows


# ---------------------------------------------------------------------- what is signed


def test_rules_hash_is_that_of_the_solidity_abi() -> None:
    numbers = params(hub_minimum_wei=(7).to_bytes(32, "big"), hub_lock_days=3, validator_set_size=4)
    rules = rules_of(numbers)
    kinds = "(uint32,(uint96,uint32)[4],uint32[],uint32[])"
    days, factors = zip(*rules.compute_locks, strict=True)

    assert rules.roles == (
        RoleRule(3_000 * 10**18, 0), RoleRule(100_000 * 10**18, 180), RoleRule(10**24, 360), RoleRule(7, 3)
    )  # fmt: skip
    assert rules_hash(rules) == keccak(encode([kinds], [(4, list(rules.roles), days, factors)]))


def test_change_is_the_contracts_typed_struct() -> None:
    text = encode_document(BASE.params, BASE.prices)
    change = make_change(1, 9, text)

    assert ParametersChange.type_string() == (
        "ParametersChange(uint64 version,uint64 fromEpoch,bytes32 rulesHash,bytes32 documentHash)"
    )
    assert change == ParametersChange(1, 9, rules_hash(rules_of(BASE.params)), keccak(text.encode()))
    assert document_hash(text) == change.document_hash
    others = [
        Domain(1, make_key("a").address),
        Domain(2, make_key("a").address),
        Domain(1, make_key("b").address),
    ]
    assert len({digest(domain, change) for domain in others}) == 3


# ---------------------------------------------------------------------- from version to version


def test_next_set_gives_a_changed_table_the_new_number_and_keeps_an_old_one() -> None:
    dearer = next_set(BASE, prices=DEAR)
    probed = next_set(dearer, params=msgspec.structs.replace(dearer.params, probes_per_node=3))
    back = next_set(probed, prices=BASE.prices)

    assert (dearer.params.version, dearer.prices.version) == (2, 2)
    assert (probed.params.version, probed.prices) == (3, dearer.prices)
    assert (back.params.version, back.prices.version) == (4, 4)  # an old table again is a new version
    assert back.prices.default == BASE.prices.default
    for before, after in ((BASE, dearer), (dearer, probed), (probed, back)):
        require_change(before, after)


@pytest.mark.parametrize(
    "fixed",
    [
        {"genesis_time_s": GENESIS + 7200},
        {"round_s": 3600, "close_within_ms": 1000},
        {"epoch_rounds": 6},
        {"day_s": 3600},
        {"unbonding_rounds": 100},
        {"challenge_delay_rounds": 1},
        {"publish_fee_wei": (1).to_bytes(32, "big")},
    ],
)
def test_change_of_what_protects_stakers_is_refused(fixed: dict[str, Any]) -> None:
    after = next_set(BASE, params=params(**fixed))

    assert [fault.code for fault in list_change_faults(BASE, after)] == ["EMC-1473"]
    assert code_of(lambda: require_change(BASE, after)) == "EMC-1473"


@pytest.mark.parametrize(
    "after",
    [
        ParameterSet(params(version=1), BASE.prices),
        ParameterSet(params(version=3), BASE.prices),
        ParameterSet(params(version=2), prices(version=2)),
        ParameterSet(params(version=2), DEAR),
        ParameterSet(params(version=2), msgspec.structs.replace(DEAR, version=3)),
    ],
)
def test_change_to_another_number_than_the_next_is_refused(after: ParameterSet) -> None:
    assert code_of(lambda: require_change(BASE, after)) == "EMC-1474"


def test_change_faults_are_all_named_at_once() -> None:
    after = ParameterSet(params(version=7, epoch_rounds=1, probes_per_node=0), prices(version=9))

    codes = [fault.code for fault in list_change_faults(BASE, after)]
    assert codes == ["EMC-1472", "EMC-1473", "EMC-1474", "EMC-1474"]
    assert "epoch_rounds" in str(list_change_faults(BASE, after)[1])


NEW_PRICE = "(a million tokens in, out, least a call)"


def test_differences_are_told_in_words() -> None:
    after = next_set(
        BASE,
        params(
            probes_per_node=3,
            online_window_ms=600_000,
            compute_minimum_wei=(4_000 * 10**18).to_bytes(32, "big"),
            router_round_micro=0,
            recheck_bps=2_500,
            models=((MANIFEST, 1),),
            compute_locks=((0, 10_000), (7, 15_000), (60, 50_000), (180, 100_000)),
        ),
        DEAR,
    )

    assert list_differences(BASE, after) == (
        "online window: 1800000 ms becomes 600000 ms",
        "probes per node: 2 becomes 3",
        "router round: 20.000000 credits becomes 0.000000 credits",
        "compute minimum: 3,000.0000 token becomes 4,000.0000 token",
        "recheck: 10.00 % becomes 25.00 %",
        "compute lock of 7 days: multiplier 1.4000 becomes 1.5000",
        "compute lock of 30 days: gone",
        "compute lock of 60 days: new, with multiplier 5.0000",
        "compute lock of 90 days: gone",
        (
            f"model {MANIFEST}: in shadow (a FAIL is written down and costs nothing)"
            " becomes enforced (a FAIL costs the round, two suspend)"
        ),
        "price of other models, a million input tokens: 10,000.000000 credits becomes 20,000.000000",
        f"price of {MANIFEST}: new, 10,000.000000, 10,000.000000, 0.010000 credits " + NEW_PRICE,
    )
    assert list_differences(BASE, next_set(BASE)) == ()
    assert list_differences(after, BASE)[-1] == f"price of {MANIFEST}: gone, the price of other models counts"


# ---------------------------------------------------------------------- versions in force

DEARER = next_set(BASE, prices=DEAR)
PROBED = next_set(DEARER, params=msgspec.structs.replace(DEARER.params, probes_per_node=3))
SCHEDULE = ParameterSchedule(
    (ParameterVersion(1, 0, BASE), ParameterVersion(2, 2, DEARER), ParameterVersion(3, 5, PROBED)),
    known_through_epoch=6,
)


@pytest.mark.parametrize(
    ("index", "number"), [(-1, 1), (0, 1), (23, 1), (24, 2), (59, 2), (60, 3), (6 * 12 + 11, 3)]
)
def test_version_is_in_force_from_its_epochs_first_round(index: int, number: int) -> None:
    assert SCHEDULE.version_at(index).number == number
    assert SCHEDULE.params_at(index).version == number
    assert SCHEDULE.prices_at(index).version == min(number, 2)


def test_round_beyond_what_is_known_has_no_parameters() -> None:
    assert code_of(lambda: SCHEDULE.version_at(84)) == "EMC-1541"
    assert code_of(lambda: SCHEDULE.params_at(84)) == "EMC-1541"
    assert code_of(lambda: SCHEDULE.tables_for(0, 84)) == "EMC-1541"
    assert SCHEDULE.newest_known_at(84).number == 3


def test_round_under_a_version_nobody_here_can_read_has_no_parameters() -> None:
    gap = Unreadable(4, 7, "EMC-1470: unknown parameter")
    schedule = ParameterSchedule(SCHEDULE.versions, 9, (gap,))

    assert schedule.version_at(83).number == 3
    for ask in (schedule.version_at, schedule.prices_at, schedule.newest_known_at):
        assert code_of(lambda ask=ask: ask(84)) == "EMC-1540"  # type: ignore[misc]
    assert code_of(lambda: schedule.tables_for(0, 84)) == "EMC-1540"


def test_versions_and_tables_for_a_window_are_those_in_force_there() -> None:
    assert [v.number for v in SCHEDULE.versions_for(range(20, 30))] == [1, 2]
    assert [v.number for v in SCHEDULE.versions_for([70])] == [3]
    assert SCHEDULE.tables_for(0, 23) == (PriceInForce(0, BASE.prices),)
    assert SCHEDULE.tables_for(23, 24) == (PriceInForce(0, BASE.prices), PriceInForce(24, DEARER.prices))
    assert SCHEDULE.tables_for(24, 70) == (PriceInForce(24, DEARER.prices),)  # version 3 has the same table
    assert SCHEDULE.tables_for(-5, 0) == (PriceInForce(0, BASE.prices),)


def test_single_schedule_is_in_force_for_ever() -> None:
    schedule = single_schedule(BASE.params, BASE.prices)

    assert schedule.params_at(10**9) is BASE.params
    assert schedule.tables_for(5, 10**9) == (PriceInForce(0, BASE.prices),)
    assert schedule.newest.number == 1


def published(number: int, from_epoch: int, content: ParameterSet, **changes: Any) -> PublishedVersion:
    text = encode_document(content.params, content.prices)
    values = {
        "rules_hash": rules_hash(rules_of(content.params)),
        "document_hash": document_hash(text),
        "document": text.encode(),
        **changes,
    }
    return PublishedVersion(number, from_epoch, 100 + number, **values)


def test_build_schedule_gives_every_version_its_epoch() -> None:
    rows = [published(1, 0, BASE), published(2, 2, DEARER), published(3, 5, PROBED)]
    schedule = build_schedule(BASE, rows, 6)

    assert [(v.number, v.from_epoch, v.parameters) for v in schedule.versions] == [
        (v.number, v.from_epoch, v.parameters) for v in SCHEDULE.versions
    ]
    assert (schedule.unreadable, schedule.known_through_epoch) == ((), 6)
    assert schedule.find_trouble(0) == ""
    assert "EMC-1541" in schedule.find_trouble(84)
    assert build_schedule(BASE, [], 1).versions == first_schedule(BASE.params, BASE.prices).versions


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (published(2, 2, DEARER, document=b"{}"), "EMC-1470"),
        (published(2, 2, DEARER, document=encode_document(*_pair()).encode()), "EMC-1475"),
        (published(2, 2, DEARER, document_hash=bytes(32)), "EMC-1475"),
        (published(2, 2, DEARER, rules_hash=bytes(32)), "EMC-1475"),
        (published(2, 2, next_set(BASE, params(round_s=3600, close_within_ms=1))), "EMC-1473"),
        (published(2, 2, ParameterSet(params(version=2), DEAR)), "EMC-1474"),
        (published(2, 2, next_set(BASE, params(probes_per_node=0))), "EMC-1472"),
    ],
)
def test_build_schedule_settles_nothing_under_a_version_it_cant_read(
    row: PublishedVersion, code: str
) -> None:
    schedule = build_schedule(BASE, [published(1, 0, BASE), row], 9)

    assert [v.number for v in schedule.versions] == [1]
    assert schedule.version_at(23).number == 1
    assert code_of(lambda: schedule.version_at(24)) == "EMC-1540"
    assert code in schedule.find_trouble(0)
    assert code in schedule.find_trouble(50)


def test_build_schedule_is_healed_by_a_later_version() -> None:
    healed = next_set(BASE, params(probes_per_node=3), DEAR, number=3)
    rows = [published(1, 0, BASE), published(2, 2, DEARER, document=b"{}"), published(3, 4, healed)]
    schedule = build_schedule(BASE, rows, 9)

    assert code_of(lambda: schedule.version_at(47)) == "EMC-1540"
    assert schedule.version_at(48).parameters == healed
    assert healed.prices.version == 3
    assert "EMC-1540" in schedule.find_trouble(20)
    assert "EMC-1540" in schedule.find_trouble(47)
    assert schedule.find_trouble(48) == ""
    assert schedule.tables_for(40, 48) == (PriceInForce(0, BASE.prices), PriceInForce(48, healed.prices))


def test_build_schedule_of_another_deployment_is_fatal() -> None:
    for row in (published(1, 0, next_set(BASE, prices=DEAR)), published(1, 0, BASE, document=b"{}")):
        with pytest.raises(FatalError, match="EMC-1542"):
            build_schedule(BASE, [row], 1)


def test_first_schedule_of_a_chain_never_read_knows_two_epochs() -> None:
    schedule = first_schedule(BASE.params, BASE.prices)

    assert schedule.version_at(23).number == 1
    assert code_of(lambda: schedule.version_at(24)) == "EMC-1541"
