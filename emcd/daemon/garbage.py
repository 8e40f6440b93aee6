"""Keeping Python's garbage collector from stopping the loop.

What a call makes is freed by reference counts: nothing on its way is part of a cycle. Still the
collector, as it is set by default, looks at every new object several times, and now and then at all
that the program's modules are made of, for 0.1 s. So what is there once the daemon is ready is
taken out of its sight, and it looks at the rest seldom. Standard library only.
"""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 50_000
"""More objects than before, until they are looked at: 5 ms at most, 10 MB of garbage at most."""
YOUNG_ROUNDS = 20
MIDDLE_ROUNDS = 100


def calm_collector() -> None:
    """Call it once, when everything that stays was made; the process must not outlive the daemon."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_ROUNDS, MIDDLE_ROUNDS)
