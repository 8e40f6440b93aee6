"""The nodes that serve one model at one endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emcd.proto.openai import Endpoint
from emcd.scheduling.choice import Pool
from emcd_hub.nodes.status import ModelInfo

if TYPE_CHECKING:
    from emcd_hub.nodes.entry import NodeEntry

LaneKey = tuple[Endpoint, str]


class Lane(Pool["NodeEntry"]):
    """A pool that knows which manifests stand behind the model's name."""

    __slots__ = ("_counts", "is_checked", "key", "variants")

    def __init__(self, key: LaneKey) -> None:
        super().__init__()
        self.key = key
        self.variants: dict[bytes, ModelInfo] = {}
        """The manifests served now, by hash: one, as a rule."""
        self._counts: dict[bytes, int] = {}
        self.is_checked = False
        """Whether a node serves it by a manifest that can be verified: then all calls ask for evidence."""

    def join(self, node: NodeEntry, info: ModelInfo) -> None:
        """Take a node that serves the model by this manifest."""
        self.add(node)
        self.variants[info.model_hash] = info
        self._counts[info.model_hash] = self._counts.get(info.model_hash, 0) + 1
        self.is_checked = self.is_checked or info.checked is not None

    def leave(self, node: NodeEntry, info: ModelInfo) -> None:
        """Forget a node that was taken with this manifest."""
        self.remove(node)
        self._counts[info.model_hash] -= 1
        if not self._counts[info.model_hash]:
            del self._counts[info.model_hash], self.variants[info.model_hash]
            self.is_checked = any(variant.checked is not None for variant in self.variants.values())
