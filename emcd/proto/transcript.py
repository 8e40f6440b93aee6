"""A request and its answer, as one validator asks another to judge them: nobody's call, no names.

Its hash is what a `Task` and a `TaskResult` are about, and so proves which bytes a validator spoke of.
"""

from __future__ import annotations

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.proto.hashing import keccak
from emcd.types import Hash

MAX_TRANSCRIPT_BYTES = 1 << 20
_MAX_WORDS = 200
_TAG = keccak(b"emcd:transcript")
_encode = msgspec.msgpack.Encoder().encode


class Transcript(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a model was asked, and what is said to be its answer.

    Args: path and request body as a node gets them (a JSON body); status, type and body of the answer.
    `nonce`: 32 bytes, so that one answer given twice is two tasks.
    """

    model_hash: bytes
    request_path: str
    request_body: bytes
    status: int
    content_type: str
    response_body: bytes
    nonce: bytes


def transcript_hash(transcript: Transcript) -> Hash:
    """keccak(keccak("emcd:transcript") || msgpack array of the fields)."""
    return keccak(_TAG + _encode(transcript))


def require_transcript(transcript: Transcript) -> None:
    """Raises: RemoteProtocolError EMC-1990 when it is too large, or a field has another size."""
    size = len(transcript.request_body) + len(transcript.response_body)
    if size > MAX_TRANSCRIPT_BYTES:
        raise RemoteProtocolError("EMC-1990", f"{size} bytes of request and response")
    if len(transcript.model_hash) != 32 or len(transcript.nonce) != 32:
        raise RemoteProtocolError("EMC-1990", "model hash and nonce have 32 bytes")
    if len(transcript.request_path) + len(transcript.content_type) > _MAX_WORDS:
        raise RemoteProtocolError("EMC-1990", "path and content type are too long")
    if not 100 <= transcript.status <= 599:
        raise RemoteProtocolError("EMC-1990", f"{transcript.status} is no HTTP status")
