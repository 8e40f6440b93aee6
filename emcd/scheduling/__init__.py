"""Who gets a call, and who is left alone for a while: the same rules for a hub and a router.

Pure: candidates are looked at through a small protocol, time and draws are arguments. It must not
know of tunnels, calls in flight or money; `emcd.line` has the waiting.
"""

from __future__ import annotations
