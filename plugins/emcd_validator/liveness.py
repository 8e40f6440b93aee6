"""How a node failed to answer: liveness, which is counted apart and is never a verdict on an answer. Pure."""

from __future__ import annotations

from typing import Final

SILENT, BUSY, LOADING, FAILED, REFUSED, ABSENT = "silent", "busy", "loading", "failed", "refused", "absent"
_NAMES: Final = {0: SILENT, 408: SILENT, 429: BUSY, 503: LOADING, 504: SILENT}


def name_failure(status: int) -> str:
    """What became of a call that was answered with this status; 0: nothing whole came in time."""
    return _NAMES.get(status, FAILED if status >= 500 else REFUSED)
