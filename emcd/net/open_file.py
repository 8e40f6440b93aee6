"""How many connections this process may hold: each is an open file, and the usual limit is 1,024."""

from __future__ import annotations

import resource


def ensure_open_files(needed: int) -> int:
    """Raise this process's soft limit of open files to `needed`, as far as the hard limit goes.

    Returns: the limit that there is now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return needed
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
