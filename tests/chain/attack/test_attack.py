"""Every attack loses against our contracts, and wins against the same without the one defence it meets."""

from __future__ import annotations

import pytest

from emcd.chain.contracts import Artifact, load_artifact
from emcd.chain.contracts.compile import ToolUnavailable
from tests.chain.attack import money, stake
from tests.chain.attack.defence import DEFENCES, Attack
from tests.chain.attack.naive import compile_naive, patched_sources
from tests.chain.attack.world import World

HOSTILE = ("HostileToken", "Thief")
ATTACKS: set[Attack] = {attack for defence in DEFENCES for attack in defence.attacks}


def name_of(attack: Attack) -> str:
    return attack.__name__


ORDERED = sorted(ATTACKS, key=name_of)
CASES = [
    pytest.param(number, attack, id=f"{name_of(attack)}-{defence.name.replace(' ', '_')}")
    for number, defence in enumerate(DEFENCES, 1)
    for attack in defence.attacks
]


@pytest.fixture(scope="session")
def naive_world() -> World:
    """The contracts that can lack any defence, lacking none."""
    try:
        return World(compile_naive([defence.patches for defence in DEFENCES]))
    except ToolUnavailable as exc:
        pytest.skip(f"no compiler here: {exc}")


@pytest.fixture(scope="session")
def our_world(naive_world: World) -> World:
    """The committed artifacts, among hostile contracts."""

    def load(name: str) -> Artifact:
        return naive_world.load(name) if name in HOSTILE else load_artifact(name)

    return World(load)


@pytest.mark.node
@pytest.mark.parametrize("attack", ORDERED, ids=name_of)
def test_attack_on_our_contracts_fails(our_world: World, attack: Attack) -> None:
    assert not attack(our_world)


@pytest.mark.node
@pytest.mark.parametrize(("number", "attack"), CASES)
def test_attack_on_contracts_without_the_defence_succeeds(
    naive_world: World, number: int, attack: Attack
) -> None:
    naive_world.lacking = number
    naive_world.shares_domain = DEFENCES[number - 1].name == "signatures name chain and contract"
    assert attack(naive_world)


def test_patches_find_each_defence_exactly_once() -> None:
    sources = patched_sources([defence.patches for defence in DEFENCES])
    for number, _ in enumerate(DEFENCES, 1):
        assert any(f"naive({number})" in text for text in sources.values())


def test_every_attack_is_tried() -> None:
    written = {
        value
        for module in (money, stake)
        for name, value in vars(module).items()
        if getattr(value, "__annotations__", {}).get("return") == "bool"
        and value.__module__ == module.__name__
        and value.__code__.co_varnames[:1] == ("world",)
    }
    assert written == ATTACKS
