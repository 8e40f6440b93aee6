"""The collector's settings, in a process of their own: they are for good."""

from __future__ import annotations

import subprocess
import sys

from emcd.daemon.garbage import MIDDLE_ROUNDS, YOUNG_OBJECTS, YOUNG_ROUNDS

PROGRAM = """
import gc, weakref
from emcd.daemon.garbage import calm_collector
class Cycle: pass
old = Cycle(); old.me = old; seen = weakref.ref(old); del old
calm_collector()
new = Cycle(); new.me = new; late = weakref.ref(new); del new
gc.collect()
print(seen() is None, late() is None, gc.get_freeze_count() > 1000, gc.isenabled(), *gc.get_threshold())
"""


def test_calm_collector_freezes_what_is_there_and_still_collects_what_comes() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)

    numbers = (YOUNG_OBJECTS, YOUNG_ROUNDS, MIDDLE_ROUNDS)
    assert done.stdout.split() == ["True"] * 4 + [str(number) for number in numbers]
