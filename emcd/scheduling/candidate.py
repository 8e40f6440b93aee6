"""What routing looks at: one node as it stands now."""

from __future__ import annotations

from typing import Protocol

from emcd.types import Address


class Candidate(Protocol):
    """A node. Plain attributes: a choice reads them several times for each of many nodes."""

    @property
    def address(self) -> Address: ...

    @property
    def room(self) -> int:
        """Calls it may be given now; 0 or less: full, broken, suspended or out of reach."""
        ...

    @property
    def spare(self) -> int:
        """The same for a call that names the node, which reaches a suspended one too."""
        ...

    @property
    def in_flight(self) -> int: ...

    @property
    def capacity(self) -> int: ...

    @property
    def last_used(self) -> int:
        """A counter that grows with every call given away."""
        ...
