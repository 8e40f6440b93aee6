"""How somebody shows a node that it knows a request, without telling anybody the request. Pure."""

from __future__ import annotations

from emcd.proto.address import address_bytes
from emcd.proto.hashing import keccak
from emcd.types import Address, Hash

_TAG = keccak(b"emcd:challenge")


def knowledge_hash(validator: Address, node: Address, call_id: bytes, path: str, request: bytes) -> Hash:
    """What only who has the request of a call can say of it, for one validator and node.

    Args: `path` and `request` as the node got them.
    """
    place = address_bytes(validator) + address_bytes(node) + call_id
    return keccak(_TAG + place + keccak(path.encode()) + keccak(request))
