"""Which of a node's calls a bundle carries. Blocking, runs in a thread or in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emcd.accounting.audit import check_seal
from emcd.bundle_file import open_bundle
from emcd.errors import RemoteProtocolError
from emcd.proto.bundle_codec import BundleReader, iter_calls
from emcd.proto.eip712 import Domain
from emcd.types import Address


@dataclass(frozen=True)
class Scanned:
    """A sealed bundle's word on one node. `unproven` stand there without the node's signature."""

    bundle_hash: bytes
    previous_round: int
    call_ids: frozenset[bytes]
    unproven: frozenset[bytes]


def scan_bundle(
    path: Path, round_index: int, node: Address, hub: Address, domain: Domain, seal: bytes
) -> Scanned:
    """Read the calls of a node in a round's bundle, once hash and seal are found to be the hub's.

    Raises: RemoteProtocolError EMC-19xx (no bundle), EMC-2031 (another round's, or not sealed); OSError.
    """
    with open_bundle(path) as data:
        reader = BundleReader(data)
        header, bundle_hash = reader.header, reader.bundle_hash()
        if header.round != round_index or header.hub != hub:
            raise RemoteProtocolError("EMC-2031", f"it is of round {header.round} by {header.hub}")
        if not check_seal(domain, hub, round_index, bundle_hash, seal):
            raise RemoteProtocolError("EMC-2031", f"no seal of {hub} on 0x{bundle_hash.hex()}")
        found, unproven = set(), set()
        for entry in iter_calls(reader, node=node):
            found.add(bytes(entry.forward.call_id))
            if entry.receipt is not None and entry.receipt_ref is None:
                unproven.add(bytes(entry.forward.call_id))
        return Scanned(bundle_hash, header.previous_round, frozenset(found), frozenset(unproven))
