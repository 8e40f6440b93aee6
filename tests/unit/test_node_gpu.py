"""What the GPU driver says, or does not."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from emcd_node.gpu import describe_gpus


class NVMLError(Exception):
    pass


def _driver(**changes: Any) -> SimpleNamespace:
    calls: dict[str, Any] = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 3,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: ["NVIDIA H200", b"NVIDIA L4", "NVIDIA H200"][handle],
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(
            total=[150_754_820_096, 24 * 10**9][handle % 2]
        ),
    }
    return SimpleNamespace(**calls | changes)


def _fail(*_: object) -> None:
    raise NVMLError


def test_describe_gpus_counts_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _driver())
    assert describe_gpus() == "2x NVIDIA H200 151 GB, 1x NVIDIA L4 24 GB"


@pytest.mark.parametrize(
    "driver",
    [None, _driver(nvmlInit=_fail), _driver(nvmlDeviceGetCount=_fail), _driver(nvmlDeviceGetName=_fail)],
)
def test_describe_gpus_without_a_usable_driver_is_empty(
    driver: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert describe_gpus() == ""
