"""What honest answers of a model differ by, on this machine and on others: where its thresholds belong.

Owns measurements (how far honest runs stray, how near the known cheats come), their files, and what follows
from several of them. Invariants: a threshold is twice the largest that any honest answer showed; measured on
fewer than three machines or 2,000 answers it is never narrower than its class's own, since nobody knows
what a fourth machine does; machines are counted once, however many files they sent. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from emcd.accounting.verdict import EMBED_TAU_E12, NumericClass
from emcd.errors import ConfigError
from emcd.inference.manifest import (
    CLASS_THRESHOLDS,
    Calibration,
    CheckedManifest,
    EmbeddingManifest,
    TextThresholds,
    model_hash,
)

ENOUGH_MACHINES = 3
ENOUGH_ANSWERS = 2_000
FACTOR = 2
FLOOR_E12 = 2_000_000
"""Two units of the last digit in which log-probabilities are reported, and twice fp32's noise in a vector."""
STATISTICS = ("l2", "d", "m", "w", "first")


class Near(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How near a known cheat comes.

    Args:
        least_e12: the least of its answers in the statistic that catches it best, times 10**12.
        answers: how many answers of it were measured.
    """

    statistic: str
    least_e12: int
    answers: int


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one machine measured of one model.

    Args:
        machine: an id that tells machines apart and says nothing else of them.
        described: processor, cores, onnxruntime, for people.
        most_e12: the largest of honest answers, by statistic, times 10**12.
        runs: honest answers by how they were run.
    """

    model_hash: str
    machine: str
    described: str
    answers: int
    most_e12: dict[str, int]
    runs: dict[str, int]
    cheats: dict[str, Near]


def encode_measurement(measurement: Measurement) -> bytes:
    """The file that travels to the machine that merges."""
    return msgspec.json.format(msgspec.json.encode(measurement, order="sorted"), indent=1) + b"\n"


def decode_measurement(data: bytes, source: str) -> Measurement:
    """Raises: ConfigError EMC-1636 when it is none."""
    try:
        found = msgspec.json.decode(data, type=Measurement)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise ConfigError("EMC-1636", f"{source}: {exc}") from exc
    numbers = (
        *found.most_e12.values(),
        *found.runs.values(),
        *(near.least_e12 for near in found.cheats.values()),
    )
    if found.answers <= 0 or not set(found.most_e12) <= set(STATISTICS) or min(numbers, default=0) < 0:
        raise ConfigError("EMC-1636", f"{source}: its numbers are none of a measurement")
    return found


def merge_measurements(measured: Sequence[Measurement]) -> Measurement:
    """All of them as one. Raises: ConfigError EMC-1636 when there is none, or they are of several models."""
    if len({item.model_hash for item in measured}) != 1:
        raise ConfigError(
            "EMC-1636", "the measurements are not all of one model" if measured else "there is none"
        )
    machines = sorted({item.machine for item in measured})
    return Measurement(
        model_hash=measured[0].model_hash,
        machine=" ".join(machines),
        described="; ".join(sorted({item.described for item in measured})),
        answers=sum(item.answers for item in measured),
        most_e12=_join((item.most_e12 for item in measured), max),
        runs=_join((item.runs for item in measured), int.__add__),
        cheats=_nearest(item.cheats for item in measured),
    )


def count_machines(measurement: Measurement) -> int:
    """How many machines a measurement, merged or not, comes from."""
    return len(set(measurement.machine.split()))


def is_enough(measurement: Measurement) -> bool:
    """Whether it may narrow a threshold below its class's own."""
    return count_machines(measurement) >= ENOUGH_MACHINES and measurement.answers >= ENOUGH_ANSWERS


def calibrate(manifest: CheckedManifest, measurement: Measurement) -> CheckedManifest:
    """The manifest with the thresholds that follow: another model, with a hash of its own.

    Raises: ConfigError EMC-1636 when the measurement is of another model.
    """
    if measurement.model_hash != f"0x{model_hash(manifest).hex()}":
        raise ConfigError("EMC-1636", f"it is of {measurement.model_hash}, not of {manifest.name}")
    known = Calibration(answers=measurement.answers, machines=count_machines(measurement))
    taus = compute_thresholds(manifest, measurement)
    if isinstance(manifest, EmbeddingManifest):
        return msgspec.structs.replace(manifest, tau_e12=taus["l2"], calibration=known)
    rows = TextThresholds(**{f"{name}_e12": taus[name] for name in ("d", "m", "w", "first")})
    return msgspec.structs.replace(manifest, thresholds=rows, calibration=known)


def compute_thresholds(manifest: CheckedManifest, measurement: Measurement) -> dict[str, int]:
    """Twice the largest honest value of each statistic, and not less than may be said yet."""
    floors = _class_thresholds(manifest)
    if is_enough(measurement):
        floors = dict.fromkeys(floors, FLOOR_E12)
    return {name: max(floor, FACTOR * measurement.most_e12.get(name, 0)) for name, floor in floors.items()}


def list_thresholds(manifest: CheckedManifest) -> dict[str, int]:
    """What a manifest allows, by statistic, times 10**12."""
    if isinstance(manifest, EmbeddingManifest):
        return {"l2": manifest.tau_e12}
    return {name: getattr(manifest.thresholds, f"{name}_e12") for name in ("d", "m", "w", "first")}


def _class_thresholds(manifest: CheckedManifest) -> dict[str, int]:
    if isinstance(manifest, EmbeddingManifest):
        return {"l2": EMBED_TAU_E12[NumericClass(manifest.numeric_class)]}
    row = CLASS_THRESHOLDS[manifest.numeric_class]
    return {name: getattr(row, f"{name}_e12") for name in ("d", "m", "w", "first")}


def _join(tables: Iterable[Mapping[str, int]], join: Callable[[int, int], int]) -> dict[str, int]:
    joined: dict[str, int] = {}
    for table in tables:
        for name, value in table.items():
            joined[name] = join(joined[name], value) if name in joined else value
    return joined


def _nearest(tables: Iterable[Mapping[str, Near]]) -> dict[str, Near]:
    nearest: dict[str, Near] = {}
    for table in tables:
        for name, near in table.items():
            other = nearest.get(name)
            least = near if other is None or near.least_e12 < other.least_e12 else other
            count = near.answers + (other.answers if other else 0)
            nearest[name] = Near(least.statistic, least.least_e12, count)
    return nearest
