"""The node's signed status: what it serves, how much, how busy.

Pure but for the clock. Invariants: the sequence grows for ever, also over restarts (it starts from
the clock in milliseconds); the first status of a connection carries every manifest whose hash it
names, and so does one after the models changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emcd.clock import Clock
from emcd.inference.manifest import Manifest, canonical_json, model_hash
from emcd.proto.control import StatusMessage, encode
from emcd.proto.eip712 import Domain
from emcd.proto.messages import NodeStatus
from emcd.proto.signing import Signer
from emcd.types import Address


@dataclass(frozen=True)
class Load:
    """What changes from one status to the next."""

    manifests: Sequence[Manifest]
    capacity: int
    in_flight: int


class Heartbeat:
    """Makes the status messages of one node for one hub."""

    def __init__(
        self,
        key: Signer,
        domain: Domain,
        hub: Address,
        clock: Clock,
        version: str,
        gpu: str,
        load: Callable[[], Load],
    ) -> None:
        self._key = key
        self._domain = domain
        self._hub = hub
        self._clock = clock
        self._version = version
        self._gpu = gpu
        self._load = load
        self._sequence = 0
        self._shown: tuple[bytes, ...] | None = None

    def reset(self) -> None:
        """A new connection: the hub has no manifests of this node."""
        self._shown = None

    def make(self) -> bytes:
        """The next status, signed, as a control message."""
        load = self._load()
        now_ms = self._clock.now_ms()
        self._sequence = max(self._sequence + 1, now_ms)
        by_hash = {bytes(model_hash(manifest)): manifest for manifest in load.manifests}
        models = tuple(sorted(by_hash))
        status = NodeStatus(
            node=self._key.address,
            hub=self._hub,
            sequence=self._sequence,
            sent_at_ms=now_ms,
            models=models,
            capacity=load.capacity,
            in_flight=load.in_flight,
            version=self._version,
            gpu=self._gpu,
        )
        manifests = () if models == self._shown else tuple(canonical_json(by_hash[name]) for name in models)
        self._shown = models
        return encode(StatusMessage(status, self._key.sign(self._domain, status), manifests))
