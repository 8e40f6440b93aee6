"""Ranges of engine versions: what they hold, and what is no range."""

from __future__ import annotations

import pytest

from emcd.errors import ConfigError
from emcd.inference.engine_kind import UNKNOWN, EngineIdentity, describe_engine_fault
from emcd.inference.engine_version import find_range_fault, is_in_range


@pytest.mark.parametrize(
    ("version", "versions", "is_in"),
    [
        ("0.10.2", "", True),
        ("", "", True),
        ("", ">=0.1", False),
        ("unknown", ">=0.1", False),
        ("0.10.2", ">=0.10,<0.12", True),
        ("0.10", ">=0.10.0,<0.12", True),
        ("0.12", ">=0.10,<0.12", False),
        ("0.12.0", "<0.12", False),
        ("0.9.9", ">=0.10", False),
        ("0.10.2rc1+cu128", "==0.10.2", True),
        ("0.10.2", "!=0.10.2", False),
        ("0.10.3", ">0.10.2, <=0.10.3", True),
        ("b6500-8ff2060", ">=6000,<7000", True),
        ("b6500-8ff2060", ">6500", False),
        ("v3.2.1", ">=3", True),
    ],
)
def test_is_in_range_compares_the_numbers(version: str, versions: str, is_in: bool) -> None:
    assert is_in_range(version, versions) is is_in


@pytest.mark.parametrize("versions", ["1.2", ">=", "~=1.2", ">=x", ">=1,", "=1", ">=1 <2", "latest"])
def test_range_that_cannot_be_read_is_refused(versions: str) -> None:
    assert find_range_fault(versions)
    with pytest.raises(ConfigError) as caught:
        is_in_range("1.2", versions)
    assert caught.value.code == "EMC-1641"
    assert "EMC-1641" in describe_engine_fault(EngineIdentity("vllm", "1.2"), "vllm", versions)


def test_range_that_can_be_read_has_no_fault() -> None:
    assert find_range_fault(">=0.10,<0.12") == find_range_fault("") == ""


@pytest.mark.parametrize(
    "identity", [UNKNOWN, EngineIdentity("ollama", "0.10.2"), EngineIdentity("vllm", "0.9")]
)
def test_describe_engine_fault_names_what_was_promised_and_what_is_there(identity: EngineIdentity) -> None:
    fault = describe_engine_fault(identity, "vllm", ">=0.10")
    assert "vllm >=0.10" in fault
    assert str(identity) in fault
    assert describe_engine_fault(EngineIdentity("vllm", "0.10.1"), "vllm", ">=0.10") == ""
