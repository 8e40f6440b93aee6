"""What the machine's NVIDIA driver says of its GPUs. Blocks: call it in a thread."""

from __future__ import annotations

from collections import Counter
from typing import Any

MAX_CHARS = 200
_GB = 10**9


def describe_gpus() -> str:
    """Such as "2x NVIDIA H200 151 GB"; "" without a GPU, a driver or nvidia-ml-py."""
    try:
        import pynvml  # type: ignore[import-untyped]
    except ImportError:
        return ""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ""
    try:
        kinds = Counter(_describe(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        return ""
    finally:
        pynvml.nvmlShutdown()
    return ", ".join(f"{count}x {kind}" for kind, count in sorted(kinds.items()))[:MAX_CHARS]


def _describe(nvml: Any, index: int) -> str:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = nvml.nvmlDeviceGetName(handle)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle).total
    return f"{name.decode() if isinstance(name, bytes) else name} {round(memory / _GB)} GB"
