"""Where prompts are made into tokens: beside the loop, and a long one in no short one's way.

A megabyte takes about a second: with one thread for all, a few long prompts would keep every other call
waiting. Invariant: at most one short and one long prompt of a model are read at a time.
"""

from __future__ import annotations

from typing import Final

import trio

LONG_PROMPT: Final = 1 << 16
"""Characters, or bytes of a request, beyond which a prompt is a long one."""


class PromptReading:
    """The two lanes of one model."""

    def __init__(self) -> None:
        self.short, self.long = trio.CapacityLimiter(1), trio.CapacityLimiter(1)

    def lane(self, size: int) -> trio.CapacityLimiter:
        """Which one a prompt of this size is read in."""
        return self.long if size > LONG_PROMPT else self.short
