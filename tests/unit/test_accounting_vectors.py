"""The conformance vectors: ours and the golden ones, all read, all reproduced, none stale."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from emcd.accounting.conformance import check_vectors
from emcd.errors import ConfigError
from tests.vectors import make_protocol_vectors, make_verdict_vectors

TESTS = Path(__file__).parent.parent
VECTORS = TESTS / "vectors"
RECOMPUTED = (
    "assignment.json",
    "batch_tree.json",
    "bundle.json",
    "emission.json",
    "messages.json",
    "reward_tree.json",
    "sampler.json",
    "settlement.json",
    "text_check.json",
)


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_bytes())


@pytest.mark.parametrize("name", RECOMPUTED)
def test_vectors_recomputed_are_reproduced(name: str) -> None:
    outcome = check_vectors(load(name))

    assert outcome.difference == ""
    assert outcome.checked >= 10


def test_vectors_every_file_is_read_by_a_test() -> None:
    sources = "".join(path.read_text("utf-8") for path in TESTS.rglob("test_*.py"))
    data = [path for path in VECTORS.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]

    unread = [path.name for path in data if f'"{path.name}"' not in sources]

    assert len(data) >= len(RECOMPUTED)
    assert unread == []


@pytest.mark.parametrize("name", sorted(make_protocol_vectors.FILES))
def test_vectors_of_our_own_are_what_the_script_writes(name: str) -> None:
    assert (VECTORS / name).read_text("utf-8") == make_protocol_vectors.render(name)


@pytest.mark.parametrize("name", sorted(make_verdict_vectors.FILES))
def test_vectors_of_verdicts_are_what_the_second_implementation_writes(name: str) -> None:
    assert (VECTORS / name).read_text("utf-8") == make_verdict_vectors.render(name)


def first_leaf(table: Any, path: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    """The way to the last scalar of the largest part of a vector file."""
    if isinstance(table, dict):
        key = list(table)[-1]
        return first_leaf(table[key], (*path, key))
    if isinstance(table, list):
        return first_leaf(table[-1], (*path, len(table) - 1))
    return path


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("assignment.json", "assignments"),
        ("assignment.json", "leaf_draws"),
        ("batch_tree.json", "batches"),
        ("emission.json", "rounds"),
        ("emission.json", "period_epoch_reward_tokens"),
        ("messages.json", "typed_messages"),
        ("reward_tree.json", "trees"),
        ("sampler.json", "noises"),
        ("sampler.json", "choices"),
        ("settlement.json", "cases"),
    ],
)
def test_vectors_one_value_changed_is_named(name: str, part: str) -> None:
    table = copy.deepcopy(load(name))
    *way, last = first_leaf(table[part], (part,))
    holder = table
    for step in way:
        holder = holder[step]
    holder[last] = holder[last] + 1 if isinstance(holder[last], int) else _other_text(holder[last])

    outcome = check_vectors(table)

    assert outcome.difference != ""


def _other_text(text: str) -> str:
    return text[:-1] + ("0" if text[-1] != "0" else "1")


@pytest.mark.parametrize("name", ["d", "m", "w", "first", "verdict"])
def test_vectors_changed_statistic_is_named(name: str) -> None:
    table = load("text_check.json")
    row = table["answers"][7]
    row[name] = "PASS" if name == "verdict" else f"{float(row[name]) + 3e-9:.9f}"

    assert check_vectors(table).difference.startswith(f"answer 7 {name} ")


def test_vectors_changed_bundle_result_is_named() -> None:
    table = load("bundle.json")
    table["bundles"][0]["results"][0]["credits_micro"] += "1"

    assert "results" in check_vectors(table).difference


@pytest.mark.parametrize(
    "table", [None, [], {}, {"cases": 1}, {"cases": []}, {"cases": [{}]}, {"bundles": [{"bytes": "0xzz"}]}]
)
def test_vectors_not_well_formed_are_refused(table: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        check_vectors(table)
    assert caught.value.code == "EMC-1950"
