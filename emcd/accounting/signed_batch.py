"""A signed batch as hub and nodes keep it, with what was signed."""

from __future__ import annotations

from dataclasses import dataclass

from emcd.proto.records import RecordBatch


@dataclass(frozen=True)
class SignedBatch:
    """A signed batch with the hashes of all its records in order: joined, or one by one."""

    batch: RecordBatch
    signature: bytes
    record_hashes: bytes | tuple[bytes, ...]

    @property
    def joined(self) -> bytes:
        hashes = self.record_hashes
        return hashes if isinstance(hashes, bytes) else b"".join(hashes)
