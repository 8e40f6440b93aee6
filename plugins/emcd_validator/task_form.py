"""Tasks on the wire: who gives one to whom stands, signed, in a header, so that a body is read of members alone. Pure."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.proto.eip712 import Domain
from emcd.proto.messages import Task
from emcd.proto.signing import require_signer
from emcd.proto.transcript import (
    MAX_TRANSCRIPT_BYTES,
    Transcript,
    require_transcript,
    transcript_hash,
)
from emcd.types import Address

HEADER = "x-emc-task"
MAX_BODY_BYTES = MAX_TRANSCRIPT_BYTES + 1024
_MAX_HEADER_CHARS = 1024

_encode = msgspec.msgpack.Encoder().encode
_header = msgspec.msgpack.Decoder(tuple[Task, bytes]).decode
_body = msgspec.msgpack.Decoder(Transcript).decode


def write_header(task: Task, signature: bytes) -> str:
    return _encode((task, signature)).hex()


def read_header(text: str) -> tuple[Task, bytes]:
    """Raises: RemoteProtocolError EMC-1867."""
    try:
        if len(text) > _MAX_HEADER_CHARS:
            raise ValueError("it is too long")
        return _header(bytes.fromhex(text))
    except (ValueError, msgspec.MsgspecError) as exc:
        raise RemoteProtocolError("EMC-1867", f"{HEADER}: {exc}") from exc


def check_task(
    domain: Domain, members: Collection[Address], own_keys: Collection[Address], task: Task, signature: bytes
) -> None:
    """Whether a member of the round's set gives this task to this validator. Raises: EMC-1867."""
    if task.receiver not in own_keys or task.receiver not in members:
        raise RemoteProtocolError("EMC-1867", f"the task is for {task.receiver}")
    if task.sender not in members or task.sender in own_keys:
        raise RemoteProtocolError("EMC-1867", f"{task.sender} is no other member of the round's set")
    try:
        require_signer(domain, task, signature, task.sender)
    except RemoteProtocolError as exc:
        raise RemoteProtocolError("EMC-1867", exc.detail) from exc


def write_transcript(transcript: Transcript) -> bytes:
    return _encode(transcript)


def read_transcript(data: bytes, task_hash: bytes) -> Transcript:
    """Raises: RemoteProtocolError EMC-1867 (not that of the task), EMC-1990."""
    try:
        transcript = _body(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1867", f"it is no transcript: {exc}") from exc
    require_transcript(transcript)
    if transcript_hash(transcript) != task_hash:
        raise RemoteProtocolError("EMC-1867", "the transcript is another one than the task names")
    return transcript
