"""The daemon: one process, one ledger, the enabled roles, from start to stop.

Composition root: it puts config, keys, ledger, chain and roles together, knows no role by name and
holds no business rule. `prepare` judges everything without side effects; `run_daemon` lives it.
"""

from __future__ import annotations

from emcd.daemon.life import Daemon, run_daemon
from emcd.daemon.prepare import Prepared, prepare, require_prepared

__all__ = ["Daemon", "Prepared", "prepare", "require_prepared", "run_daemon"]
