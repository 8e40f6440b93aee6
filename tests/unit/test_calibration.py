"""Thresholds from measurements: twice the worst honest answer, and no narrower than may be said yet."""

from __future__ import annotations

import msgspec
import pytest

from emcd.errors import ConfigError
from emcd.inference.calibration import (
    FLOOR_E12,
    Measurement,
    Near,
    calibrate,
    compute_thresholds,
    count_machines,
    decode_measurement,
    encode_measurement,
    is_enough,
    list_thresholds,
    merge_measurements,
)
from emcd.inference.manifest import EmbeddingManifest, TextManifest, model_hash

TEXT = TextManifest(
    name="writer",
    files=dict.fromkeys(("model.onnx", "tokenizer.json", "golden.json"), "ab" * 32),
    context_tokens=64,
    vocab_tokens=16,
    bos_token=None,
    stop_tokens=(),
)
EMBEDDER = EmbeddingManifest(name="e", files={}, graph="g", dimension=3, max_tokens=8)


def measured(machine: str = "one", answers: int = 1000, **changes: object) -> Measurement:
    base = Measurement(
        model_hash=f"0x{model_hash(TEXT).hex()}",
        machine=machine,
        described=f"machine {machine}",
        answers=answers,
        most_e12={"d": 1_500_000, "m": 0, "w": 0, "first": 900_000},
        runs={"alone": answers},
        cheats={"int8": Near("d", 4_000_000_000, 32)},
    )
    return msgspec.structs.replace(base, **changes)


def test_file_round_trips() -> None:
    assert decode_measurement(encode_measurement(measured()), "file") == measured()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[" * 9999,
        encode_measurement(measured(answers=0)),
        encode_measurement(measured(most_e12={"d": -1})),
        encode_measurement(measured(most_e12={"x": 1})),
    ],
)
def test_file_that_is_no_measurement_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="somewhere") as error:
        decode_measurement(data, "somewhere")
    assert error.value.code == "EMC-1636"


def test_merge_takes_the_worst_honest_answer_and_the_nearest_cheat() -> None:
    other = measured(
        "two",
        most_e12={"d": 900_000, "m": 7_000_000, "w": 0, "first": 0},
        runs={"alone": 400, "together": 600},
        cheats={"int8": Near("d", 3_000_000_000, 16), "int4": Near("d", 9, 8)},
    )
    merged = merge_measurements([measured(), other])

    assert merged.most_e12 == {"d": 1_500_000, "m": 7_000_000, "w": 0, "first": 900_000}
    assert merged.runs == {"alone": 1400, "together": 600}
    assert merged.cheats == {"int8": Near("d", 3_000_000_000, 48), "int4": Near("d", 9, 8)}
    assert (merged.answers, count_machines(merged)) == (2000, 2)
    assert merge_measurements([merged, measured("three")]).answers == 3000


@pytest.mark.parametrize("rows", [[], [measured(), measured(model_hash="0x" + "ab" * 32)]])
def test_merge_of_nothing_or_of_several_models_is_refused(rows: list[Measurement]) -> None:
    with pytest.raises(ConfigError) as error:
        merge_measurements(rows)
    assert error.value.code == "EMC-1636"


@pytest.mark.parametrize(
    ("machines", "answers", "enough"),
    [("abc", 700, True), ("ab", 5000, False), ("abb", 5000, False), ("abc", 600, False)],
)
def test_few_machines_or_answers_never_narrow_a_threshold(machines: str, answers: int, enough: bool) -> None:
    merged = merge_measurements([measured(name, answers) for name in machines])
    found = compute_thresholds(TEXT, merged)

    assert is_enough(merged) is enough
    if enough:
        assert found == {"d": 3_000_000, "m": FLOOR_E12, "w": FLOOR_E12, "first": FLOOR_E12}
    else:
        assert found == list_thresholds(TEXT)


def test_honest_answers_beyond_the_class_widen_a_threshold_at_once() -> None:
    far = measured(most_e12={"d": 300_000_000, "m": 0, "w": 0, "first": 0})
    assert compute_thresholds(TEXT, far)["d"] == 600_000_000


def test_calibrated_manifest_is_another_model_that_says_what_it_rests_on() -> None:
    merged = merge_measurements([measured(name) for name in "abc"])
    fresh = calibrate(TEXT, merged)

    assert isinstance(fresh, TextManifest)
    assert isinstance(fresh.calibration, msgspec.Struct)
    assert (fresh.thresholds.d_e12, fresh.calibration.answers, fresh.calibration.machines) == (
        3_000_000,
        3000,
        3,
    )
    assert model_hash(fresh) != model_hash(TEXT)
    assert msgspec.structs.replace(fresh, thresholds=TEXT.thresholds, calibration=msgspec.UNSET) == TEXT


def test_embedder_has_one_threshold() -> None:
    rows = [
        measured(name, model_hash=f"0x{model_hash(EMBEDDER).hex()}", most_e12={"l2": 1_400_000})
        for name in "abc"
    ]
    fresh = calibrate(EMBEDDER, merge_measurements(rows))
    assert isinstance(fresh, EmbeddingManifest)
    assert fresh.tau_e12 == 2_800_000


def test_measurement_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        calibrate(EMBEDDER, measured())
    assert error.value.code == "EMC-1636"
